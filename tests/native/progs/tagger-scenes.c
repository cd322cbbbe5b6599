/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What programs do that libusm-tagger must not disturb, each a scene of its own:
 * tagger-scenes SCENE [ARGUMENT].  Run by tagger-peer, which evicts all the time.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>

#include "check.h"

#define MANY (8ul << 20)

static uint64_t now_msec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Keeps looking at its memory for so many milliseconds. */
static void scene_hold(const char *arg)
{
	uint64_t until = now_msec() + (uint64_t)atoi(arg ? arg : "1000");
	char *p = map_anonymous(8 * MANY);

	for (uint64_t tag = 1; tag == 1 || now_msec() < until; tag++) {
		fill(p, 8 * MANY, tag);
		usleep(20000);
		check_filled(p, 8 * MANY, tag);
	}
}

/* Fills its memory, sleeps, then looks once. */
static void scene_sleep(const char *arg)
{
	char *p = map_anonymous(MANY);

	fill(p, MANY, 1);
	usleep((unsigned)atoi(arg ? arg : "1000") * 1000);
	check_filled(p, MANY, 1);
}

/* Children of children, each at work before its own agent is. */
static void descend(char *p, unsigned depth)
{
	for (unsigned i = 0; i < 3; i++) {
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (pid == 0) {
			char *own = malloc(MANY / 8);

			memset(own, (int)depth, MANY / 8);
			check_filled(p, MANY, 1);
			if (depth > 0)
				descend(p, depth - 1);
			usleep(20000);
			fill(p, MANY / 2, depth + 10);
			usleep(20000);
			check_filled(p, MANY / 2, depth + 10);
			for (size_t k = 0; k < MANY / 8; k++)
				CHECK(own[k] == (char)depth);
			_exit(0);
		}
		wait_ok(pid);
	}
	check_filled(p, MANY, 1);
}

static void scene_fork(const char *arg)
{
	char *p = map_anonymous(MANY);

	(void)arg;
	fill(p, MANY, 1);
	descend(p, 1);
}

static void *short_thread(void *arg)
{
	volatile char stack[8192];

	memset((char *)stack, 5, sizeof(stack));
	return stack[17] == 5 ? arg : NULL;
}

static int c11_thread(void *arg)
{
	return *(int *)arg + 1;
}

static void scene_threads(const char *arg)
{
	char *p = map_anonymous(MANY);

	(void)arg;
	fill(p, MANY, 1);
	for (int i = 0; i < 1500; i++) {
		pthread_t t[4];
		thrd_t c;
		void *r;
		int value;

		for (int k = 0; k < 4; k++)
			CHECK(!pthread_create(&t[k], NULL, short_thread, p));
		CHECK(thrd_create(&c, c11_thread, &i) == thrd_success);
		for (int k = 0; k < 4; k++)
			CHECK(!pthread_join(t[k], &r) && r == p);
		CHECK(thrd_join(c, &value) == thrd_success && value == i + 1);
	}
	check_filled(p, MANY, 1);
}

/* Threads that sleep long enough for their stacks to leave, and then end. */
static void *slow_thread(void *arg)
{
	usleep(50000);
	return arg;
}

static void scene_exits(const char *arg)
{
	(void)arg;
	for (int i = 0; i < 10; i++) {
		pthread_t t[32];

		for (int k = 0; k < 32; k++)
			CHECK(!pthread_create(&t[k], NULL, slow_thread, NULL));
		for (int k = 0; k < 32; k++)
			CHECK(!pthread_join(t[k], NULL));
	}
}

static void scene_exec(const char *arg)
{
	int left = arg ? atoi(arg) : 20;
	char *p = map_anonymous(MANY), number[16];

	fill(p, MANY, 1);
	usleep(5000);
	check_filled(p, MANY, 1);
	snprintf(number, sizeof(number), "%d", left - 1);
	if (left > 0)
		execl("/proc/self/exe", "tagger-scenes", "exec", number, NULL);
}

static void scene_spawn(const char *arg)
{
	extern char **environ;
	char *argv[] = { "true", NULL };
	char *p = map_anonymous(MANY);

	(void)arg;
	fill(p, MANY, 1);
	for (int i = 0; i < 50; i++) {
		pid_t pid;

		CHECK(!posix_spawnp(&pid, "true", NULL, NULL, argv, environ));
		wait_ok(pid);
	}
	check_filled(p, MANY, 1);
}

/* Programs close descriptors that they do not know, and open others in their place. */
static void scene_closefrom(const char *arg)
{
	char *p = map_anonymous(MANY), *q;
	pid_t pid;

	(void)arg;
	fill(p, MANY, 1);
	CHECK(!close_range(3, ~0u, 0));
	for (int i = 3; i < 300; i++)
		CHECK(open("/dev/null", O_RDONLY) == i);
	q = map_anonymous(MANY);
	fill(q, MANY, 2);
	pid = fork();
	if (pid == 0) {
		check_filled(p, MANY, 1);
		for (int i = 3; i < 300; i++)
			CHECK(fcntl(i, F_GETFD) == 0);
		_exit(0);
	}
	wait_ok(pid);
	usleep(200000);
	check_filled(p, MANY, 1);
	check_filled(q, MANY, 2);
}

/* Nothing of ours keeps a pipe open that the program closed. */
static void scene_pipe(const char *arg)
{
	int fd[2];
	pid_t pid;
	char c;

	(void)arg;
	CHECK(!pipe(fd));
	pid = fork();
	if (pid == 0) {
		dup2(fd[1], 2);
		close(fd[0]);
		close(fd[1]);
		pid = fork();
		if (pid == 0) {
			free(malloc(1 << 20));
			close(2);
			usleep(3000000);
			_exit(0);
		}
		_exit(0);
	}
	wait_ok(pid);
	close(fd[1]);
	alarm(2);
	CHECK(read(fd[0], &c, 1) == 0);
	alarm(0);
}

/* A child sees zeros in what its parent wiped, and nothing of what it kept to itself. */
static void scene_wipe(const char *arg)
{
	uint64_t *wiped = (uint64_t *)map_anonymous(PAGE), *kept = (uint64_t *)map_anonymous(PAGE);
	char *p = map_anonymous(MANY);

	(void)arg;
	*wiped = *kept = 0x5ec2e7;
	CHECK(!madvise(wiped, PAGE, MADV_WIPEONFORK));
	CHECK(!madvise(kept, PAGE, MADV_DONTFORK));
	fill(p, MANY, 1);
	for (int i = 0; i < 10; i++) {
		pid_t pid;

		usleep(20000);
		pid = fork();
		if (pid == 0) {
			CHECK(*wiped == 0);
			*wiped = 0x5ec2e8;
			usleep(20000);
			pid = fork();
			if (pid == 0) {
				CHECK(*wiped == 0);
				_exit(0);
			}
			wait_ok(pid);
			CHECK(mmap(kept, PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == kept);
			CHECK(*kept == 0);
			_exit(0);
		}
		wait_ok(pid);
		CHECK(*wiped == 0x5ec2e7 && *kept == 0x5ec2e7);
	}
	check_filled(p, MANY, 1);
}

static void scene_lockall(const char *arg)
{
	char *p = map_anonymous(MANY), *q;

	(void)arg;
	fill(p, MANY, 1);
	usleep(50000);
	CHECK(!mlockall(MCL_CURRENT | MCL_FUTURE));
	q = map_anonymous(MANY);
	fill(q, MANY, 2);
	usleep(200000);
	check_filled(p, MANY, 1);
	CHECK(!munlockall());
	usleep(50000);
	check_filled(p, MANY, 1);
	check_filled(q, MANY, 2);
}

/* A filter for all threads that kills at anything the agent needs to evict. */
static void scene_seccomp(const char *arg)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(code) / sizeof(code[0]), code };
	char *p = map_anonymous(MANY);

	(void)arg;
	fill(p, MANY, 1);
	usleep(50000);
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	/* Between operations, as the daemon makes them here; see docs/tagger.md. */
	usleep(120000);
	CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog));
	usleep(500000);
	check_filled(p, MANY, 1);
}

static void call_all(void)
{
	char *p, *q;

	errno = 77;
	p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	CHECK(p != MAP_FAILED && errno == 77);
	p[0] = 1;
	q = mremap(p, 3 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
	CHECK(q != MAP_FAILED && q[0] == 1 && errno == 77);
	CHECK(!madvise(q, PAGE, MADV_DONTNEED) && q[0] == 0 && errno == 77);
	CHECK(!munmap(q, 64 * PAGE) && errno == 77);
	p = sbrk(5 * PAGE);
	CHECK(p != (void *)-1 && errno == 77);
	memset(p, 3, 5 * PAGE);
	CHECK(sbrk(0) == p + 5 * PAGE && !brk(p) && sbrk(0) == p && errno == 77);
	CHECK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED &&
	      errno == EINVAL);
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0) == MAP_FAILED && errno == EBADF);
	CHECK(munmap((void *)1, PAGE) == -1 && errno == EINVAL);
	CHECK(madvise((void *)PAGE, PAGE, 9999) == -1 && errno == EINVAL);
	CHECK(mremap((void *)PAGE, PAGE, 2 * PAGE, 0) == MAP_FAILED && errno == EFAULT);
	CHECK(brk((void *)(1ul << 60)) == -1 && errno == ENOMEM);
}

/* Results are libc's, and success leaves errno alone; long enough for pages to leave meanwhile. */
static void scene_errno(const char *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 100; i++) {
		call_all();
		usleep(5000);
	}
}

static const struct {
	const char *name;
	void (*run)(const char *arg);
} scenes[] = {
	{ "hold", scene_hold },		{ "sleep", scene_sleep },
	{ "fork", scene_fork },		{ "threads", scene_threads },
	{ "exits", scene_exits },	{ "exec", scene_exec },
	{ "spawn", scene_spawn },	{ "closefrom", scene_closefrom },
	{ "pipe", scene_pipe },		{ "wipe", scene_wipe },
	{ "lockall", scene_lockall },	{ "seccomp", scene_seccomp },
	{ "errno", scene_errno },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof(scenes) / sizeof(scenes[0]); i++) {
		if (strcmp(scenes[i].name, argv[1]) == 0) {
			scenes[i].run(argc > 2 ? argv[2] : NULL);
			return 0;
		}
	}
	fprintf(stderr, "usage: tagger-scenes SCENE [ARGUMENT]\n");
	return 2;
}
