/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <systemd/sd-login.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"

/* One line, its prefix, colours and newline included: a pipe takes so much in one
 * piece, and a thread's stack never notices. */
#define LOG_LINE_MAX 2048u

/* Longest journal field besides MESSAGE: USM_PROCESS, where a rule for a unit is meant. */
#define LOG_FIELD_MAX 288u
#define LOG_FIELDS    14u

/* Where the journal takes datagrams of FIELD=value lines.  Not by sd_journal_send(): it waits for a
 * journal that stands still, and so would all programs that wait for us. */
#define JOURNAL_SOCKET "/run/systemd/journal/socket"

#define COLOUR_ERROR   "\x1b[31m"
#define COLOUR_WARNING "\x1b[33m"
#define COLOUR_DEBUG   "\x1b[2m"
#define COLOUR_OFF     "\x1b[0m"

/* Written by usm_log_open before there are threads, read by all. */
static char log_name[32] = "usmd";
static bool log_to_journal;
static int log_socket = -1;
/* The service whose main process we are.  The journal finds it out by /proc, where a process that has
 * said why it ends is gone by then; "journalctl -u" believes what root says of it, too. */
static char *log_unit;
static bool log_colours;

static _Atomic int log_max_priority = LOG_INFO;
/* Entries that the journal did not take, and has not been told of. */
static _Atomic unsigned log_nr_dropped;

static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;
	int end = -1;

	if (!stream || sscanf(stream, "%llu:%llu%n", &device, &inode, &end) != 2 || end < 0 ||
	    stream[end])
		return false;
	/* The variable is inherited by children whose stderr went elsewhere. */
	if (fstat(STDERR_FILENO, &st) < 0)
		return false;
	if (st.st_dev != device || st.st_ino != inode)
		return false;
	/* A sandbox may hide it; stderr still leads to the journal then. */
	return access(JOURNAL_SOCKET, W_OK) == 0;
}

static bool stderr_wants_colours(void)
{
	const char *term = getenv("TERM");

	return isatty(STDERR_FILENO) && !getenv("NO_COLOR") && term && strcmp(term, "dumb") != 0;
}

static void find_unit(void)
{
	const char *pid = getenv("SYSTEMD_EXEC_PID");

	free(log_unit);
	log_unit = NULL;
	if (pid && atoi(pid) == getpid() && sd_pid_get_unit(0, &log_unit) < 0)
		log_unit = NULL;
}

void usm_log_open(const char *name)
{
	snprintf(log_name, sizeof(log_name), "%s", name);
	find_unit();
	if (log_socket < 0)
		log_socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	log_to_journal = log_socket >= 0 && stderr_is_journal();
	log_colours = !log_to_journal && stderr_wants_colours();
}

void usm_log_set_level(int priority)
{
	log_max_priority = priority;
}

int usm_log_level(void)
{
	return log_max_priority;
}

/* Text from plugins, programs and files must not move a terminal's cursor or
 * pretend to be a second line. */
static void make_one_line(char *text)
{
	size_t n = strlen(text);

	while (n > 0 && text[n - 1] == '\n')
		text[--n] = '\0';
	for (; *text; text++)
		if (((unsigned char)*text < ' ' && *text != '\t') || *text == 0x7f)
			*text = '?';
}

static const char *colour_of(int priority)
{
	if (!log_colours)
		return "";
	if (priority <= LOG_ERR)
		return COLOUR_ERROR;
	if (priority == LOG_WARNING)
		return COLOUR_WARNING;
	return priority >= LOG_DEBUG ? COLOUR_DEBUG : "";
}

static void write_line(int priority, const char *message)
{
	char line[LOG_LINE_MAX];
	const char *colour = colour_of(priority);
	const char *end = *colour ? COLOUR_OFF "\n" : "\n";
	size_t end_length = strlen(end), room = sizeof(line) - end_length;
	ssize_t r;
	int n;

	n = snprintf(line, room, "%s%s: %s", colour, log_name, message);
	if (n < 0)
		return;
	if ((size_t)n >= room) {
		n = (int)room - 1;
		memcpy(line + n - 3, "...", 3);
	}
	memcpy(line + n, end, end_length);

	/* One write, so that lines of several threads and processes don't mix.  Where
	 * it can't be written there is nobody to tell.  A socket is the journal's, see above. */
	do {
		r = send(STDERR_FILENO, line, (size_t)n + end_length, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (r < 0 && errno == ENOTSOCK)
			r = write(STDERR_FILENO, line, (size_t)n + end_length);
	} while (r < 0 && errno == EINTR);
}

/* The lines of one journal entry; text[] holds all but MESSAGE. */
struct entry {
	struct iovec iov[2 * LOG_FIELDS];
	char text[LOG_FIELDS][LOG_FIELD_MAX];
	unsigned n;
};

static void entry_add_line(struct entry *e, char *text, size_t length)
{
	static char newline[] = "\n";

	e->iov[e->n++] = (struct iovec){.iov_base = text, .iov_len = length};
	e->iov[e->n++] = (struct iovec){.iov_base = newline, .iov_len = 1};
}

__attribute__((format(printf, 2, 3)))
static void entry_add(struct entry *e, const char *fmt, ...)
{
	char *text = e->text[e->n / 2];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, LOG_FIELD_MAX, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	make_one_line(text); /* the next line would be the next field */
	entry_add_line(e, text, strlen(text));
}

static void entry_add_fields(struct entry *e, const struct usm_log_fields *f)
{
	if (f->message_id)
		entry_add(e, "MESSAGE_ID=%s", f->message_id);
	if (f->event)
		entry_add(e, "USM_EVENT=%s", f->event);
	if (f->process)
		entry_add(e, "USM_PROCESS=%s", f->process);
	if (f->pid)
		entry_add(e, "USM_PID=%d", (int)f->pid);
	if (f->policy)
		entry_add(e, "USM_POLICY=%s", f->policy);
	if (f->addr)
		entry_add(e, "USM_ADDR=0x%llx", (unsigned long long)f->addr);
	if (f->has_frame)
		entry_add(e, "USM_FRAME=0x%llx", (unsigned long long)f->frame);
	if (f->has_slot)
		entry_add(e, "USM_SLOT=%llu", (unsigned long long)f->slot);
	if (f->has_count)
		entry_add(e, "USM_COUNT=%llu", (unsigned long long)f->count);
}

/* message_field starts with "MESSAGE=".  -errno, -EAGAIN if the journal has no room. */
static int send_entry(int priority, int error, const struct usm_log_fields *f, char *message_field)
{
	static const struct sockaddr_un journal = {.sun_family = AF_UNIX,
						   .sun_path = JOURNAL_SOCKET};
	struct entry e;
	struct msghdr m = {.msg_name = (void *)&journal, .msg_namelen = sizeof(journal),
			   .msg_iov = e.iov};

	e.n = 0;
	entry_add_line(&e, message_field, strlen(message_field));
	entry_add(&e, "PRIORITY=%d", priority);
	entry_add(&e, "SYSLOG_IDENTIFIER=%s", log_name);
	if (log_unit)
		entry_add(&e, "OBJECT_SYSTEMD_UNIT=%s", log_unit);
	if (error)
		entry_add(&e, "ERRNO=%d", error);
	if (f)
		entry_add_fields(&e, f);
	m.msg_iovlen = e.n;
	return sendmsg(log_socket, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void tell_of_dropped(void)
{
	unsigned n = atomic_exchange(&log_nr_dropped, 0);
	char text[128];

	if (!n)
		return;
	snprintf(text, sizeof(text), "MESSAGE=%u entries are missing here: the journal did not take them", n);
	if (send_entry(LOG_WARNING, 0, NULL, text) < 0)
		atomic_fetch_add(&log_nr_dropped, n);
}

/*
 * What programs make happen as often as they like: so many entries at once, then so many a second, of
 * all kinds together.  What is left out is added up by its kind.
 */
#define LIMIT_BURST	  100u
#define LIMIT_PERIOD_NSEC 20000000ull

static struct {
	pthread_mutex_t lock;
	uint64_t nsec;	      /* when credit_nsec was right */
	uint64_t credit_nsec; /* an entry costs a period */
	struct left_out {
		const char *event, *message_id;
		unsigned nr_entries;
		uint64_t count;
	} left_out[5];
} limit = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.credit_nsec = LIMIT_BURST * LIMIT_PERIOD_NSEC,
	.left_out = {{.event = "attach"}, {.event = "detach"}, {.event = "fault"}, {.event = "evict"},
		     {.event = "swapin"}},
};

static bool take_credit(void)
{
	struct timespec ts;
	uint64_t now;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
	limit.credit_nsec = MIN(limit.credit_nsec + (now - limit.nsec), LIMIT_BURST * LIMIT_PERIOD_NSEC);
	limit.nsec = now;
	if (limit.credit_nsec < LIMIT_PERIOD_NSEC)
		return false;
	limit.credit_nsec -= LIMIT_PERIOD_NSEC;
	return true;
}

/* Whether this entry is one too many; it is counted then. */
static bool is_left_out(int priority, const struct usm_log_fields *f)
{
	bool r = false;

	if (priority != LOG_INFO || log_max_priority > LOG_INFO || !f || !f->event)
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(limit.left_out); i++) {
		struct left_out *l = &limit.left_out[i];

		if (strcmp(l->event, f->event) != 0)
			continue;
		pthread_mutex_lock(&limit.lock);
		r = !take_credit();
		if (r) {
			l->message_id = f->message_id;
			l->nr_entries++;
			l->count += f->has_count ? f->count : 1;
		}
		pthread_mutex_unlock(&limit.lock);
	}
	return r;
}

void usm_log_left_out(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(limit.left_out); i++) {
		struct usm_log_fields f = {.has_count = 1};
		struct left_out l;

		pthread_mutex_lock(&limit.lock);
		l = limit.left_out[i];
		limit.left_out[i] = (struct left_out){.event = l.event};
		pthread_mutex_unlock(&limit.lock);
		if (!l.nr_entries)
			continue;
		f.event = l.event;
		f.message_id = l.message_id;
		f.count = l.count;
		/* Not LOG_INFO, which would be left out itself. */
		log_event(LOG_NOTICE, &f, "%s: %llu more, in %u entries that are left out here", l.event,
			  (unsigned long long)l.count, l.nr_entries);
	}
}

/* False: there is no journal. */
static bool to_journal(int priority, int error, const struct usm_log_fields *f, char *message_field)
{
	int r;

	if (!log_to_journal)
		return false;
	if (is_left_out(priority, f))
		return true;
	tell_of_dropped();
	r = send_entry(priority, error, f, message_field);
	if (r == -EAGAIN)
		atomic_fetch_add(&log_nr_dropped, 1);
	return r == 0 || r == -EAGAIN;
}

static __thread struct {
	char *buf;
	size_t size;
} first_error;

void usm_log_first_error(char *buf, size_t size)
{
	first_error.buf = buf;
	first_error.size = size;
	if (buf)
		buf[0] = '\0';
}

int usm_log_full(int priority, int error, const struct usm_log_fields *f, const char *fmt, ...)
{
	static const char field[] = "MESSAGE=";
	char buf[LOG_LINE_MAX];
	char *message = buf + sizeof(field) - 1;
	size_t room = sizeof(buf) - (sizeof(field) - 1);
	int saved_errno = errno, n;
	va_list ap;

	if (error < 0)
		error = -error;
	if (priority > log_max_priority)
		return -error;

	memcpy(buf, field, sizeof(field));
	errno = error; /* what %m prints */
	va_start(ap, fmt);
	n = vsnprintf(message, room, fmt, ap);
	va_end(ap);
	if (n >= 0) {
		if ((size_t)n >= room)
			memcpy(buf + sizeof(buf) - 4, "...", 4);
		make_one_line(message);
		if (priority <= LOG_ERR && first_error.buf && !first_error.buf[0])
			snprintf(first_error.buf, first_error.size, "%s", message);
		if (!to_journal(priority, error, f, buf))
			write_line(priority, message);
	}

	errno = saved_errno;
	return -error;
}
