/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hostile SCENE [ARGUMENT]: programs that do to usmd what none should, or what odd ones do.
 * Each says "ready PID" when it has begun, and goes on until it is killed, or told to end by the end
 * of its standard input, when it checks its memory and says "ok".
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "check.h"

#define THREADS 8

static char *memory;
static size_t size;
static _Atomic int over;
static pthread_t thread[THREADS];

static void begin(const char *mib)
{
	size = (size_t)atoi(mib ? mib : "16") << 20;
	memory = map_anonymous(size);
	fill(memory, size, 1);
	printf("memory %p\n", (void *)memory);
}

static void ready(void)
{
	printf("ready %d\n", (int)getpid());
	fflush(stdout);
}

/* Needs one page after the other, so that its faults come at any time. */
static void *need(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!over) {
		size_t i = (size_t)rand_r(&seed) % (size / PAGE);

		CHECK_WORD(memory + i * PAGE, page_word(1, i));
	}
	return arg;
}

static void begin_needing(void)
{
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&thread[i], NULL, need, (void *)(i + 1)));
}

static void end_needing(void)
{
	over = 1;
	for (unsigned i = 0; i < THREADS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	check_filled(memory, size, 1);
	puts("ok");
}

static bool told_to_end(int msec)
{
	struct pollfd p = {.fd = 0, .events = POLLIN};

	return poll(&p, 1, msec) > 0;
}

/* Needs its memory until it is told to end. */
static void go_on(void)
{
	begin_needing();
	ready();
	while (!told_to_end(1000))
		;
	end_needing();
}

/* --- at each line one thing for which usmd has to put its pages in order --------------- */

static void fork_once(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		check_filled(memory, size, 1);
		_exit(0);
	}
	wait_ok(pid);
}

static void remap_once(void)
{
	char *own = map_anonymous(PAGE * 16), *moved;

	fill(own, PAGE * 16, 2);
	moved = mremap(own, PAGE * 16, PAGE * 16, MREMAP_MAYMOVE | MREMAP_FIXED,
		       map_anonymous(PAGE * 16));
	CHECK(moved != MAP_FAILED);
	check_filled(moved, PAGE * 16, 2);
}

static void at_each_line(void (*once)(void), const char *mib)
{
	char line[16];

	begin(mib);
	begin_needing();
	ready();
	while (fgets(line, sizeof(line), stdin))
		once();
	end_needing();
}

static void scene_fork(const char *mib)
{
	at_each_line(fork_once, mib);
}

static void scene_remap(const char *mib)
{
	at_each_line(remap_once, mib);
}

/* --- descriptors ------------------------------------------------------------------------ */

static void scene_close(const char *mib)
{
	begin(mib);
	begin_needing();
	ready();
	while (!told_to_end(10)) {
		close_range(3, ~0u, 0);
		fork_once();
	}
	end_needing();
}

static void scene_blocking(const char *mib)
{
	unsigned n = 0;

	begin(mib);
	for (int fd = 3; fd < 1024; fd++) {
		int flags = fcntl(fd, F_GETFL);

		if (flags >= 0 && flags & O_NONBLOCK)
			n += fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0;
	}
	CHECK(n > 0); /* the userfaultfd was among them */
	go_on();
}

/* A service of the old kind; what it has to say goes to a file. */
static void scene_daemon(const char *path)
{
	int fd;

	begin("16");
	if (fork())
		_exit(0);
	setsid();
	if (fork())
		_exit(0);
	CHECK(chdir("/") == 0);
	for (int i = 0; i < 4096; i++)
		close(i);
	for (unsigned i = 1; i <= 20; i++) {
		check_filled(memory, size, i);
		fill(memory, size, i + 1);
	}
	fd = open(path, O_WRONLY | O_CREAT, 0644);
	CHECK(fd >= 0 && write(fd, "ok\n", 3) == 3);
}

/* --- the operation memory --------------------------------------------------------------- */

static char *operation_memory(size_t *ret_size)
{
	unsigned long start, end;
	char line[512], *p = NULL;
	FILE *f = fopen("/proc/self/maps", "r");

	CHECK(f);
	while (!p && fgets(line, sizeof(line), f))
		if (strstr(line, "usm-ops") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			p = (char *)start;
	fclose(f);
	CHECK(p);
	*ret_size = end - start;
	return p;
}

/* Whatever becomes of this program; words, so that numbers and addresses come out of it too. */
static void scene_scribble(const char *mib)
{
	unsigned seed = 1;
	uint64_t *ops;
	size_t bytes;

	begin(mib);
	ops = (uint64_t *)operation_memory(&bytes);
	ready();
	begin_needing();
	while (!told_to_end(0))
		for (unsigned i = 0; i < 4096; i++) {
			size_t at = (size_t)rand_r(&seed) % (i % 2 ? bytes / 8 : 64);

			ops[at] = i % 3 ? (uint64_t)rand_r(&seed) << 12 : ~0ull;
		}
}

/* It is sealed against this; holes can be made. */
static void scene_punch(const char *mib)
{
	char path[64];
	size_t bytes;
	char *ops;
	int fd;

	begin(mib);
	ops = operation_memory(&bytes);
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (unsigned long)ops,
		 (unsigned long)ops + bytes);
	fd = open(path, O_RDWR);
	CHECK(fd >= 0);
	CHECK(ftruncate(fd, 0) < 0 && ftruncate(fd, 1) < 0 && ftruncate(fd, 1 << 30) < 0);
	ready();
	begin_needing();
	while (!told_to_end(0))
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes);
}

/* --- rights and filters ----------------------------------------------------------------- */

static void scene_setuid(const char *mib)
{
	begin(mib);
	CHECK(setgid(65534) == 0 && setuid(65534) == 0);
	fork_once();
	go_on();
}

static void scene_namespace(const char *mib)
{
	pid_t pid;

	begin(mib);
	/* The agent makes it fail here, as any second thread does. */
	CHECK(unshare(CLONE_NEWUSER) < 0);
	/* A child without libc's fork() has no agent. */
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) == 0);
		check_filled(memory, size, 1);
		_exit(0);
	}
	wait_ok(pid);
	go_on();
}

static void scene_seccomp(const char *mib)
{
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog filter = {.len = 1, .filter = code};

	begin(mib);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0);
	go_on();
}

static void scene_lock(const char *mib)
{
	begin(mib);
	CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
	begin(mib); /* more of it, locked at once */
	go_on();
}

/* --- its own userfaultfd ---------------------------------------------------------------- */

static int own_uffd;

static void *serve_own(void *arg)
{
	struct uffd_msg m;

	while (read(own_uffd, &m, sizeof(m)) == sizeof(m)) {
		static char page[PAGE] __attribute__((aligned(4096)));
		struct uffdio_copy copy = {
			.dst = m.arg.pagefault.address & ~(PAGE - 1),
			.src = (uintptr_t)page,
			.len = PAGE,
		};

		memset(page, 0x5a, sizeof(page));
		CHECK(ioctl(own_uffd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST);
	}
	return arg;
}

static void scene_userfaultfd(const char *mib)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	size_t own_size = 4 << 20;
	pthread_t server;
	char *own;

	begin(mib);
	own_uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	CHECK(own_uffd >= 0 && ioctl(own_uffd, UFFDIO_API, &api) == 0);
	/* What the tagger has registered is usmd's: memory that it has not seen. */
	own = (char *)syscall(SYS_mmap, NULL, own_size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(own != MAP_FAILED);
	reg.range.start = (uintptr_t)own;
	reg.range.len = own_size;
	CHECK(ioctl(own_uffd, UFFDIO_REGISTER, &reg) == 0);
	CHECK(!pthread_create(&server, NULL, serve_own, NULL));
	for (size_t i = 0; i < own_size; i += PAGE)
		CHECK(own[i] == 0x5a);
	go_on();
	for (size_t i = 0; i < own_size; i += PAGE)
		CHECK(own[i] == 0x5a);
}

/* --- forks ------------------------------------------------------------------------------ */

/* As many children at once as it gets; each needs some of what it has inherited. */
static void scene_storm(const char *count)
{
	unsigned n = 0, most = (unsigned)atoi(count ? count : "100");
	int pipefd[2];

	begin("4");
	CHECK(pipe(pipefd) == 0);
	ready();
	while (!told_to_end(0)) {
		pid_t pid = n < most ? fork() : -1;
		char c;

		if (pid == 0) {
			close(pipefd[1]);
			CHECK_WORD(memory + n % 1024 * PAGE, page_word(1, n % 1024));
			if (n % 2)
				_exit(0);
			/* Waits for the end of its parent. */
			_exit((int)read(pipefd[0], &c, 1));
		}
		if (pid > 0)
			n++;
		else
			usleep(10000);
	}
	check_filled(memory, size, 1);
	printf("forked %u\nok\n", n);
}

/* Neither atfork handlers nor an agent. */
static void scene_clones(const char *mib)
{
	begin(mib);
	begin_needing();
	ready();
	while (!told_to_end(10)) {
		pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

		CHECK(pid >= 0);
		if (pid == 0) {
			check_filled(memory, size, 1);
			fill(memory, size / 4, 3);
			check_filled(memory, size / 4, 3);
			_exit(0);
		}
		wait_ok(pid);
	}
	end_needing();
}

static void scene_work(const char *mib)
{
	begin(mib);
	go_on();
}

/* Leaves its memory alone until the end. */
static void scene_still(const char *mib)
{
	begin(mib);
	ready();
	while (!told_to_end(1000))
		;
	check_filled(memory, size, 1);
	puts("ok");
}

static const struct {
	const char *name;
	void (*run)(const char *arg);
} scenes[] = {
	{"blocking", scene_blocking},
	{"clones", scene_clones},
	{"close", scene_close},
	{"daemon", scene_daemon},
	{"fork", scene_fork},
	{"lock", scene_lock},
	{"namespace", scene_namespace},
	{"punch", scene_punch},
	{"remap", scene_remap},
	{"scribble", scene_scribble},
	{"seccomp", scene_seccomp},
	{"setuid", scene_setuid},
	{"still", scene_still},
	{"storm", scene_storm},
	{"userfaultfd", scene_userfaultfd},
	{"work", scene_work},
};

int main(int argc, char **argv)
{
	for (unsigned i = 0; argc > 1 && i < sizeof(scenes) / sizeof(scenes[0]); i++)
		if (!strcmp(scenes[i].name, argv[1])) {
			scenes[i].run(argc > 2 ? argv[2] : NULL);
			return 0;
		}
	fprintf(stderr, "hostile: no such scene\n");
	return 2;
}
