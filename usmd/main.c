/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arena.h"
#include "keeper.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "manager-internal.h"
#include "privileges.h"
#include "store.h"

#define EXIT_USAGE 2
/* As sysexits.h and systemd say; units/usmd.service does not try these again. */
#define EXIT_UNAVAILABLE 69
#define EXIT_CONFIG	 78
#define EXIT_ARENA	 76

static struct arena *the_arena;

/* Tells the keeper in which thread it was, so that it knows whether a policy is to blame. */
static void on_fatal(int sig)
{
	uint32_t tid = (uint32_t)syscall(SYS_gettid);

	for (unsigned i = 0; i < ARENA_WORKERS; i++)
		if (the_arena->h->worker[i].tid == tid)
			atomic_store(&the_arena->h->crashed_worker, i + 1);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void catch_fatal_signals(void)
{
	static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
	struct sigaction sa = {.sa_handler = on_fatal, .sa_flags = SA_NODEFER};

	for (unsigned i = 0; i < ARRAY_SIZE(fatal); i++)
		sigaction(fatal[i], &sa, NULL);
	/* A limit on the size of files is a write that fails, like a full disk. */
	signal(SIGXFSZ, SIG_IGN);
}

/* Each managed program takes four descriptors. */
static void raise_limits(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
}

static int engine_main(struct arena *a, const struct keeper_options *o)
{
	struct manager *m = NULL;
	int r;

	prctl(PR_SET_NAME, "usmd-engine");
	the_arena = a;
	catch_fatal_signals();
	r = manager_new(a, o, &m);
	if (r < 0)
		return log_error_errno(r, "Cannot start the engine: %m") ? EXIT_FAILURE : 0;
	r = manager_start(m);
	if (r < 0)
		/* After EXIT_CONFIG systemd would not try again, and drop what programs wait for. */
		return r == -EINVAL && !a->h->inherited ? EXIT_CONFIG : EXIT_FAILURE;
	r = manager_run(m);
	manager_free(m);
	/* Whoever read events has ended: what they brought is told before we end. */
	store_stop();
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static void help(FILE *f)
{
	fputs("usmd - user-space memory daemon\n\n"
	      "usmd [--config FILE] [--runtime-dir DIR] [--state-dir DIR] [--check]\n\n"
	      "  --config FILE       read this file instead of /etc/usmd/usmd.conf and conf.d\n"
	      "  --runtime-dir DIR   sockets and runtime assignments; default /run/usmd\n"
	      "  --state-dir DIR     the default swap file; default /var/lib/usmd\n"
	      "  --check             read the configuration, say what is wrong with it, end\n"
	      "  --takes-over ID     the same, and fail too if this usmd cannot take over the programs\n"
	      "                      of a running one, whose ID is in the file \"arena\" of its runtime\n"
	      "                      directory\n"
	      "  --debug             log single events too\n"
	      "  --version, --help\n\n"
	      "It stays in the foreground. usmctl and programs find a private instance by\n"
	      "USMD_RUNTIME_DIR=DIR.\n",
	      f);
}

static int check(const struct keeper_options *o)
{
	struct usm_config *c = NULL;
	int r = usm_config_load(o->config_file, o->is_private ? o->runtime_dir : "", &c);

	usm_config_free(c);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static bool knows_arena(const char *id)
{
	char ours[ARENA_ID_MAX + 1];

	arena_id(ours);
	return strcmp(id, ours) == 0;
}

/* What it names stays in systemd's store, as long as the service is started again and again. */
static int refuse_arena(const char *id)
{
	char ours[ARENA_ID_MAX + 1];

	arena_id(ours);
	log_error("Programs wait for a usmd that knows their pages (arena %s); this one (%s, arena %s) does not. "
		  "Install that version again, and they go on; \"systemctl stop usmd.service usmd.socket\" "
		  "gives them up", id[0] ? id : "of an unknown version", USM_VERSION, ours);
	return EXIT_ARENA;
}

/* An upgrade replaces the file; this is where the next one is. */
static const char *find_exe(void)
{
	static char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	exe[MAX(n, (ssize_t)0)] = '\0';
	return exe;
}

/* Removed by nobody: sockets are made anew, the swap file is reused. */
static int make_state_dir(const char *dir)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return log_error_errno(-errno, "Cannot make the state directory %s: %m", dir);
	return 0;
}

int main(int argc, char *argv[])
{
	static const struct option options[] = {
		{"config", required_argument, NULL, 'c'},
		{"runtime-dir", required_argument, NULL, 'r'},
		{"state-dir", required_argument, NULL, 's'},
		{"check", no_argument, NULL, 'k'},
		{"takes-over", required_argument, NULL, 't'},
		{"debug", no_argument, NULL, 'd'},
		{"version", no_argument, NULL, 'v'},
		{"help", no_argument, NULL, 'h'},
		{},
	};
	static struct keeper_options o = {
		.runtime_dir = "/run/usmd",
		.state_dir = "/var/lib/usmd",
	};
	struct arena *a = NULL;
	const char *takes_over = NULL;
	struct store_received received;
	bool only_check = false;
	int opt, r;

	usm_log_open("usmd");
	while ((opt = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		switch (opt) {
		case 'c':
			o.config_file = optarg;
			break;
		case 'r':
			o.runtime_dir = optarg;
			o.is_private = true;
			break;
		case 's':
			o.state_dir = optarg;
			break;
		case 'k':
			only_check = true;
			break;
		case 't':
			takes_over = optarg;
			break;
		case 'd':
			usm_log_set_level(LOG_DEBUG);
			break;
		case 'v':
			printf("usmd %s\n", USM_VERSION);
			return EXIT_SUCCESS;
		case 'h':
			help(stdout);
			return EXIT_SUCCESS;
		default:
			help(stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		log_error("usmd takes no argument like '%s'; see usmd --help", argv[optind]);
		return EXIT_USAGE;
	}
	if (takes_over && !knows_arena(takes_over))
		return EXIT_FAILURE;
	if (only_check || takes_over)
		return check(&o);
	o.exe = find_exe();
	raise_limits();
	/* Whoever reads what we write may go at any time. */
	signal(SIGPIPE, SIG_IGN);
	r = store_receive(&received);
	log_info("usmd %s starting", USM_VERSION);
	if (r == -EPROTONOSUPPORT)
		return refuse_arena(received.id);
	if (r < 0)
		return log_error_errno(r, "Cannot take over what systemd has stored: %m") ? EXIT_FAILURE : 0;
	a = received.arena;
	if (a)
		log_notice("Taking over the programs of the usmd before");
	else
		r = arena_new(&a);
	if (r < 0)
		return log_error_errno(r, "Cannot make the arena: %m") ? EXIT_FAILURE : 0;
	r = make_state_dir(o.state_dir);
	if (r >= 0)
		r = keeper_open(a, &o, &received);
	if (r >= 0)
		r = privileges_drop(o.is_private);
	/* What waits for the next start must not be given up. */
	r = r == -ENODEV && !a->h->inherited ? EXIT_UNAVAILABLE :
	    r < 0 ? EXIT_FAILURE : keeper_run(a, &o, engine_main);
	arena_free(a);
	return r;
}
