/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/config.c usmd/config-parse.c usmd/config-assign.c usmd/lib/log.c usmd/lib/parse.c */
#include "capture.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "config.h"
#include "lib/cleanup.h"
#include "lib/log.h"

#define MIB 1048576ull

/* A directory of the test's own; its name is cut from what is logged. */
static char root[64];
static struct capture capture;
static char logged[16384];

static int setup(void **state)
{
	(void)state;
	strcpy(root, "/tmp/test-config.XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[96];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", root);
	return system(command);
}

/* Writes root/path, with the directories above it. */
static void put(const char *path, const char *text)
{
	char full[256];
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		assert_true(mkdir(full, 0755) == 0 || errno == EEXIST);
		*slash = '/';
	}
	f = fopen(full, "w");
	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
}

static const char *get(const char *path)
{
	static char text[8192];
	char full[256];
	size_t n;
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	f = fopen(full, "r");
	assert_non_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	return text;
}

static void keep_log(void)
{
	const char *p = capture_end(&capture);
	size_t n = strlen(root), length = 0;

	for (; *p && length < sizeof(logged) - 1; ) {
		if (strncmp(p, root, n) == 0)
			p += n;
		else
			logged[length++] = *p++;
	}
	logged[length] = '\0';
}

static int load_path(struct usm_config **ret)
{
	int r;

	capture_begin(&capture);
	r = usm_config_load(NULL, root, ret);
	keep_log();
	return r;
}

static int load_file(const char *path, struct usm_config **ret)
{
	char full[256];
	int r;

	snprintf(full, sizeof(full), "%s/%s", root, path);
	capture_begin(&capture);
	r = usm_config_load(full, NULL, ret);
	keep_log();
	return r;
}

/* The configuration of one text, which must be right. */
static struct usm_config *good(const char *text)
{
	struct usm_config *c = NULL;

	put("f", text);
	assert_int_equal(load_file("f", &c), 0);
	assert_string_equal(logged, "");
	return c;
}

/* A text that must be refused with this one message. */
static void bad(const char *text, const char *message)
{
	struct usm_config *c = (struct usm_config *)root;

	put("f", text);
	assert_int_equal(load_file("f", &c), -EINVAL);
	assert_string_equal(logged, message);
	assert_ptr_equal(c, root);
}

static uint64_t ram(void)
{
	return (uint64_t)sysconf(_SC_PHYS_PAGES) * 4096;
}

static void test_defaults(void **state)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	struct usm_config *c;

	(void)state;
	assert_int_equal(usm_config_new(&c), 0);
	assert_int_equal(c->memory_bytes, ram() / 4 / 4096 * 4096);
	assert_int_equal(c->workers, processors < 4 ? processors : 4);
	assert_int_equal(c->faultaround, 64);
	assert_int_equal(c->low_permyriad, 200);
	assert_int_equal(c->high_permyriad, 400);
	assert_int_equal(c->mechanism, USM_MECHANISM_AUTO);
	assert_int_equal(c->eviction, USM_EVICTION_AUTO);
	assert_int_equal(c->oom, USM_OOM_EXCEED);
	assert_string_equal(c->default_policy, "none");
	assert_int_equal(c->threshold_percent, 0);
	assert_int_equal(c->nr_processes + c->nr_swaps + c->nr_policies + c->nr_allows, 0);
	assert_null(usm_config_free(c));
	assert_null(usm_config_free(NULL));
}

/* No file at all is the shipped configuration. */
static void test_nothing(void **state)
{
	struct usm_config *c;

	(void)state;
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "");
	assert_int_equal(c->faultaround, 64);
	usm_config_free(c);
}

static void test_original_file(void **state)
{
	struct usm_config *c;

	(void)state;
	c = good("memory 256\n"
		 "workers 2\n"
		 "page 4096\n"
		 "# Assign any process named 'stressapptest' to use 'policyOne'\n"
		 "process stressapptest policyOne\n"
		 "process alloc redis-server policyTwo\n"
		 "process swap redis-server swapPolicy\n"
		 "priority redis-server 10\n"
		 "threshold 80 aggressive_evict\n");
	assert_int_equal(c->memory_bytes, 268435456);
	assert_int_equal(c->workers, 2);
	assert_int_equal(c->nr_processes, 2);
	assert_string_equal(c->processes[0].name, "stressapptest");
	assert_string_equal(c->processes[0].alloc_policy, "policyOne");
	assert_string_equal(c->processes[0].swap_policy, "policyOne");
	assert_int_equal(c->processes[0].line, 5);
	assert_string_equal(c->processes[1].alloc_policy, "policyTwo");
	assert_string_equal(c->processes[1].swap_policy, "swapPolicy");
	assert_int_equal(c->processes[1].priority, 10);
	assert_int_equal(c->threshold_percent, 80);
	assert_string_equal(c->threshold_policy, "aggressive_evict");
	usm_config_free(c);
}

static void test_syntax(void **state)
{
	struct usm_config *c;
	char text[2100];

	(void)state;
	/* Blanks, comments, line ends of another system, no newline at the end. */
	c = good("\n   \t\n#memory 1\n  workers\t \t3 # three\r\nfaultaround 8#eight\noom wait");
	assert_int_equal(c->workers, 3);
	assert_int_equal(c->faultaround, 8);
	assert_int_equal(c->oom, USM_OOM_WAIT);
	usm_config_free(c);

	/* The last one counts. */
	c = good("workers 3\nworkers 5\n");
	assert_int_equal(c->workers, 5);
	usm_config_free(c);

	bad("Memory 256\n",
	    "usmd: /f:1: unknown directive 'Memory', expected one of memory, workers, page, "
	    "process, priority, threshold, limit, default, swap, watermark, faultaround, "
	    "mechanism, eviction, oom, policy, allow\n");
	bad("workers\n", "usmd: /f:1: 0 values for workers, expected 'workers N'\n");
	bad("workers 1 2\n", "usmd: /f:1: 2 values for workers, expected 'workers N'\n");
	bad("process a b c d e f g h i j\n",
	    "usmd: /f:1: 10 values for process, expected 'process [alloc|swap] NAME POLICY'\n");
	bad("workers \x1b[2J\n", "usmd: /f:1: control character, expected a line of text\n");

	memset(text, 'x', 1024);
	strcpy(text + 1024, "\nworkers 0\n");
	bad(text, "usmd: /f:1: line too long, expected less than 1024 bytes\n"
		  "usmd: /f:2: bad value '0' for workers, expected a number from 1 to 64\n");
	text[0] = '#';
	text[1023] = '\0'; /* the longest line */
	usm_config_free(good(text));
}

/* All errors of all files, not the first alone. */
static void test_every_error(void **state)
{
	struct usm_config *c = NULL;

	(void)state;
	put("etc/usmd/usmd.conf", "workers 0\nmemory 64M\nfoult 1\n");
	put("run/usmd/conf.d/10-a.conf", "# a\n\noom never\n");
	assert_int_equal(load_path(&c), -EINVAL);
	assert_null(c);
	assert_string_equal(logged,
		"usmd: /etc/usmd/usmd.conf:1: bad value '0' for workers, expected a number from 1 "
		"to 64\n"
		"usmd: /etc/usmd/usmd.conf:3: unknown directive 'foult', expected one of memory, "
		"workers, page, process, priority, threshold, limit, default, swap, watermark, "
		"faultaround, mechanism, eviction, oom, policy, allow\n"
		"usmd: /run/usmd/conf.d/10-a.conf:3: bad value 'never' for oom, expected wait, "
		"exceed or kill\n");
}

static void check_memory(const char *text, uint64_t bytes)
{
	struct usm_config *c = good(text);

	assert_int_equal(c->memory_bytes, bytes);
	usm_config_free(c);
}

#define MEMORY_EXPECTED \
	"for memory, expected a size of at least 1M: a number of MB, or with K, M, G, T, or % of RAM\n"

static void test_memory(void **state)
{
	struct usm_config *c;

	(void)state;
	check_memory("memory 1\n", 1048576);
	check_memory("memory 1024K\n", 1048576);
	check_memory("memory 1026K\n", 1048576 + 0); /* whole pages */
	check_memory("memory 64M\n", 67108864);
	check_memory("memory 100%\n", ram());
	check_memory("memory 12.5%\n", ram() / 8 / 4096 * 4096);
	bad("memory 0\n", "usmd: /f:1: bad value '0' " MEMORY_EXPECTED);
	bad("memory 1023K\n", "usmd: /f:1: bad value '1023K' " MEMORY_EXPECTED);
	bad("memory 101%\n", "usmd: /f:1: bad value '101%' " MEMORY_EXPECTED);
	bad("memory 129T\n", "usmd: /f:1: bad value '129T' " MEMORY_EXPECTED);
	bad("memory -1\n", "usmd: /f:1: bad value '-1' " MEMORY_EXPECTED);
	bad("memory 1GB\n", "usmd: /f:1: bad value '1GB' " MEMORY_EXPECTED);

	/* More than there is: a warning, and with the module an error. */
	put("f", "workers 2\nmemory 128T\n");
	assert_int_equal(load_file("f", &c), 0);
	assert_int_equal(c->memory_bytes, 140737488355328);
	usm_config_free(c);
	assert_non_null(strstr(logged, "usmd: /f:2: memory 128T is more than this machine has, "
				       "expected at most "));
	assert_non_null(strstr(logged, ", ignoring\n"));
	put("f", "memory 128T\nmechanism module\n");
	assert_int_equal(load_file("f", &c), -EINVAL);
	assert_non_null(strstr(logged, "usmd: /f:1: memory 128T is more than this machine has, "
				       "expected at most "));
	assert_non_null(strstr(logged, " with mechanism module\n"));
	/* What a later line corrects is not complained about. */
	check_memory("memory 128T\nmemory 2\n", 2097152);
}

static void test_workers(void **state)
{
	struct usm_config *c = good("workers 1\n");

	(void)state;
	assert_int_equal(c->workers, 1);
	usm_config_free(c);
	c = good("workers 64\n");
	assert_int_equal(c->workers, 64);
	usm_config_free(c);
	bad("workers 65\n",
	    "usmd: /f:1: bad value '65' for workers, expected a number from 1 to 64\n");
	bad("workers two\n",
	    "usmd: /f:1: bad value 'two' for workers, expected a number from 1 to 64\n");
}

static void test_page(void **state)
{
	(void)state;
	usm_config_free(good("page 4096\n"));
	bad("page 2097152\n",
	    "usmd: /f:1: bad value '2097152' for page, expected 4096, the only page size\n");
	bad("page 4095\n",
	    "usmd: /f:1: bad value '4095' for page, expected 4096, the only page size\n");
}

#define NAME63 "123456789012345678901234567890123456789012345678901234567890123"
#define NAME_EXPECTED ": 1 to 63 printable characters without / # \" \\\n"

static void test_process(void **state)
{
	const struct usm_config_process *p;
	char path[96];
	struct usm_config *c;

	(void)state;
	c = good("process a one\n"
		 "process alloc two\n" /* a program called alloc */
		 "process alloc b x\n"
		 "process swap b y\n"
		 "process " NAME63 " " NAME63 "\n"
		 "\n"
		 "process swap a z\n"
		 "limit only-limit 8\n");
	assert_int_equal(c->nr_processes, 5);
	p = usm_config_find(c, "a");
	assert_string_equal(p->alloc_policy, "one");
	assert_string_equal(p->swap_policy, "z");
	snprintf(path, sizeof(path), "%s/f", root);
	assert_string_equal(p->file, path);
	assert_int_equal(p->line, 7);
	p = usm_config_find(c, "alloc");
	assert_string_equal(p->alloc_policy, "two");
	assert_string_equal(p->swap_policy, "two");
	p = usm_config_find(c, "b");
	assert_string_equal(p->alloc_policy, "x");
	assert_string_equal(p->swap_policy, "y");
	assert_int_equal(p->line, 4);
	p = usm_config_find(c, NAME63);
	assert_string_equal(p->alloc_policy, NAME63);
	p = usm_config_find(c, "only-limit");
	assert_string_equal(p->alloc_policy, "");
	assert_null(p->file);
	assert_null(usm_config_find(c, "A"));
	assert_null(usm_config_find(c, ""));
	usm_config_free(c);

	c = good("process swap b y\n");
	assert_string_equal(c->processes[0].alloc_policy, "");
	usm_config_free(c);

	bad("process /usr/bin/a one\n", "usmd: /f:1: bad value '/usr/bin/a' for process, expected "
					"the name of a process" NAME_EXPECTED);
	bad("process a caf\xc3\xa9\n", "usmd: /f:1: bad value 'caf\xc3\xa9' for process, expected "
				       "the name of a policy" NAME_EXPECTED);
	bad("process " NAME63 "4 p\n", "usmd: /f:1: bad value '" NAME63 "4' for process, expected "
				       "the name of a process" NAME_EXPECTED);
	bad("process both a one\n", "usmd: /f:1: bad value 'both' for process, expected alloc or "
				    "swap before NAME POLICY\n");
	bad("process a\n",
	    "usmd: /f:1: 1 value for process, expected 'process [alloc|swap] NAME POLICY'\n");
}

static void test_priority(void **state)
{
	struct usm_config *c = good("priority a 7\npriority b -32767\npriority c 32767\n"
				    "process d p\n");

	(void)state;
	assert_int_equal(usm_config_find(c, "a")->priority, 7);
	assert_true(usm_config_find(c, "a")->has_priority);
	assert_int_equal(usm_config_find(c, "b")->priority, -32767);
	assert_int_equal(usm_config_find(c, "c")->priority, 32767);
	assert_int_equal(usm_config_find(c, "d")->priority, 0);
	assert_false(usm_config_find(c, "d")->has_priority);
	usm_config_free(c);
	bad("priority a 32768\n", "usmd: /f:1: bad value '32768' for priority, expected a priority "
				  "from -32767 to 32767\n");
	bad("priority a high\n", "usmd: /f:1: bad value 'high' for priority, expected a priority "
				 "from -32767 to 32767\n");
	bad("priority .. 1\n", "usmd: /f:1: bad value '..' for priority, expected the name of a "
			       "process" NAME_EXPECTED);
	bad("priority a\n", "usmd: /f:1: 1 value for priority, expected 'priority NAME N'\n");
}

static void test_threshold(void **state)
{
	struct usm_config *c = good("threshold 1 a\n");

	(void)state;
	assert_int_equal(c->threshold_percent, 1);
	usm_config_free(c);
	c = good("threshold 100% b\n");
	assert_int_equal(c->threshold_percent, 100);
	assert_string_equal(c->threshold_policy, "b");
	usm_config_free(c);
	bad("threshold 0 a\n", "usmd: /f:1: bad value '0' for threshold, expected a percentage "
			       "from 1 to 100\n");
	bad("threshold 101 a\n", "usmd: /f:1: bad value '101' for threshold, expected a percentage "
				 "from 1 to 100\n");
	bad("threshold % a\n", "usmd: /f:1: bad value '%' for threshold, expected a percentage "
			       "from 1 to 100\n");
	bad("threshold 80 a/b\n", "usmd: /f:1: bad value 'a/b' for threshold, expected the name of "
				  "a policy" NAME_EXPECTED);
	bad("threshold 80\n",
	    "usmd: /f:1: 1 value for threshold, expected 'threshold PERCENT POLICY'\n");
}

static void test_limit(void **state)
{
	struct usm_config *c = good("limit a 64\nlimit b 1G\nlimit c 50%\nlimit d 1M\n"
				    "limit e 2G\nlimit e 0\n");

	(void)state;
	assert_int_equal(usm_config_find(c, "a")->limit_bytes, 67108864);
	assert_int_equal(usm_config_find(c, "b")->limit_bytes, 1073741824);
	assert_int_equal(usm_config_find(c, "c")->limit_bytes, ram() / 2 / 4096 * 4096);
	assert_int_equal(usm_config_find(c, "d")->limit_bytes, 1048576);
	assert_int_equal(usm_config_find(c, "e")->limit_bytes, 0);
	usm_config_free(c);
	bad("limit a 1023K\n", "usmd: /f:1: bad value '1023K' for limit, expected 0 (no limit) or "
			       "a size of at least 1M: a number of MB, or with K, M, G, T, or % of "
			       "RAM\n");
	bad("limit a none\n", "usmd: /f:1: bad value 'none' for limit, expected 0 (no limit) or a "
			      "size of at least 1M: a number of MB, or with K, M, G, T, or % of "
			      "RAM\n");
	bad("limit . 1G\n", "usmd: /f:1: bad value '.' for limit, expected the name of a "
			    "process" NAME_EXPECTED);
	bad("limit a\n", "usmd: /f:1: 1 value for limit, expected 'limit NAME SIZE'\n");
}

static void test_default(void **state)
{
	struct usm_config *c = good("default fifo\n");

	(void)state;
	assert_string_equal(c->default_policy, "fifo");
	usm_config_free(c);
	c = good("default fifo\ndefault none\n");
	assert_string_equal(c->default_policy, "none");
	usm_config_free(c);
	bad("default a\\b\n", "usmd: /f:1: bad value 'a\\b' for default, expected the name of a "
			      "policy" NAME_EXPECTED);
}

#define SWAP_SIZE_EXPECTED \
	"for swap, expected auto or a size of at least 1M: a number of MB, or with K, M, G, T\n"

static void test_swap(void **state)
{
	char text[1024] = "", line[64], path[320];
	struct usm_config *c;

	(void)state;
	c = good("swap /var/a 512\nswap /var/b 1G priority 5\nswap /var/c auto priority -1\n"
		 "swap /var/a 2G\n");
	assert_int_equal(c->nr_swaps, 3);
	assert_string_equal(c->swaps[0].path, "/var/a");
	assert_int_equal(c->swaps[0].size_bytes, 2147483648);
	assert_int_equal(c->swaps[0].priority, 0);
	assert_string_equal(c->swaps[1].path, "/var/b");
	assert_int_equal(c->swaps[1].size_bytes, 1073741824);
	assert_int_equal(c->swaps[1].priority, 5);
	assert_int_equal(c->swaps[2].size_bytes, 0);
	assert_int_equal(c->swaps[2].priority, -1);
	usm_config_free(c);

	bad("swap var/a 1G\n", "usmd: /f:1: bad value 'var/a' for swap, expected the full path of "
			       "a file, at most 255 bytes\n");
	bad("swap /var/ 1G\n", "usmd: /f:1: bad value '/var/' for swap, expected the full path of "
			       "a file, at most 255 bytes\n");
	bad("swap /a 1023K\n", "usmd: /f:1: bad value '1023K' " SWAP_SIZE_EXPECTED);
	bad("swap /a 10%\n", "usmd: /f:1: bad value '10%' " SWAP_SIZE_EXPECTED);
	bad("swap /a 1G 5\n",
	    "usmd: /f:1: bad value '5' for swap, expected priority N after the size\n");
	bad("swap /a 1G prio 5\n",
	    "usmd: /f:1: bad value 'prio' for swap, expected priority N after the size\n");
	bad("swap /a 1G priority 40000\n", "usmd: /f:1: bad value '40000' for swap, expected a "
					   "priority from -32767 to 32767\n");
	bad("swap /a\n",
	    "usmd: /f:1: 1 value for swap, expected 'swap PATH SIZE [priority N]'\n");

	for (int i = 0; i < 17; i++) {
		snprintf(line, sizeof(line), "swap /a%d 1G\n", i);
		strcat(text, line);
	}
	bad(text, "usmd: /f:17: too many swap devices, expected at most 16\n");

	memset(path, 'a', sizeof(path));
	memcpy(path, "swap /", 6);
	strcpy(path + 5 + 255, " 1G\n"); /* 255 bytes */
	usm_config_free(good(path));
	strcpy(path + 5 + 255, "a 1G\n");
	put("f", path);
	assert_int_equal(load_file("f", &c), -EINVAL);
}

#define WATERMARK_EXPECTED "for watermark, expected a percentage from 0.01% to 90%\n"

static void test_watermark(void **state)
{
	struct usm_config *c = good("watermark 1.5% 3%\n");

	(void)state;
	assert_int_equal(c->low_permyriad, 150);
	assert_int_equal(c->high_permyriad, 300);
	usm_config_free(c);
	c = good("watermark 0.01% 90%\n");
	assert_int_equal(c->low_permyriad, 1);
	assert_int_equal(c->high_permyriad, 9000);
	usm_config_free(c);
	bad("watermark 4% 2%\n", "usmd: /f:1: watermark LOW 4% is not below HIGH 2%, expected LOW "
				 "below HIGH\n");
	bad("watermark 2% 2%\n", "usmd: /f:1: watermark LOW 2% is not below HIGH 2%, expected LOW "
				 "below HIGH\n");
	bad("watermark 0% 2%\n", "usmd: /f:1: bad value '0%' " WATERMARK_EXPECTED);
	bad("watermark 2% 90.01%\n", "usmd: /f:1: bad value '90.01%' " WATERMARK_EXPECTED);
	bad("watermark 2 4\n", "usmd: /f:1: bad value '2' " WATERMARK_EXPECTED);
	bad("watermark 2%\n",
	    "usmd: /f:1: 1 value for watermark, expected 'watermark LOW% HIGH%'\n");
}

static void test_faultaround(void **state)
{
	struct usm_config *c = good("faultaround 1\n");

	(void)state;
	assert_int_equal(c->faultaround, 1);
	usm_config_free(c);
	c = good("faultaround 256\n");
	assert_int_equal(c->faultaround, 256);
	usm_config_free(c);
	bad("faultaround 0\n", "usmd: /f:1: bad value '0' for faultaround, expected a power of two "
			       "from 1 to 256\n");
	bad("faultaround 48\n", "usmd: /f:1: bad value '48' for faultaround, expected a power of "
				"two from 1 to 256\n");
	bad("faultaround 512\n", "usmd: /f:1: bad value '512' for faultaround, expected a power of "
				 "two from 1 to 256\n");
}

static void test_mechanism(void **state)
{
	struct usm_config *c = good("mechanism userfault\n");

	(void)state;
	assert_int_equal(c->mechanism, USM_MECHANISM_USERFAULT);
	usm_config_free(c);
	c = good("mechanism module\n");
	assert_int_equal(c->mechanism, USM_MECHANISM_MODULE);
	usm_config_free(c);
	c = good("mechanism module\nmechanism auto\n");
	assert_int_equal(c->mechanism, USM_MECHANISM_AUTO);
	usm_config_free(c);
	bad("mechanism kernel\n", "usmd: /f:1: bad value 'kernel' for mechanism, expected auto, "
				  "userfault or module\n");
}

static void test_eviction(void **state)
{
	struct usm_config *c = good("eviction move\n");

	(void)state;
	assert_int_equal(c->eviction, USM_EVICTION_MOVE);
	usm_config_free(c);
	c = good("eviction lazyfree\n");
	assert_int_equal(c->eviction, USM_EVICTION_LAZYFREE);
	usm_config_free(c);
	c = good("eviction off\n");
	assert_int_equal(c->eviction, USM_EVICTION_OFF);
	usm_config_free(c);
	c = good("eviction off\neviction auto\n");
	assert_int_equal(c->eviction, USM_EVICTION_AUTO);
	usm_config_free(c);
	bad("eviction OFF\n", "usmd: /f:1: bad value 'OFF' for eviction, expected auto, move, "
			      "lazyfree or off\n");
}

static void test_oom(void **state)
{
	struct usm_config *c = good("oom wait\n");

	(void)state;
	assert_int_equal(c->oom, USM_OOM_WAIT);
	usm_config_free(c);
	c = good("oom kill\n");
	assert_int_equal(c->oom, USM_OOM_KILL);
	usm_config_free(c);
	c = good("oom kill\noom exceed\n");
	assert_int_equal(c->oom, USM_OOM_EXCEED);
	usm_config_free(c);
	bad("oom panic\n",
	    "usmd: /f:1: bad value 'panic' for oom, expected wait, exceed or kill\n");
}

#define POLICY_EXPECTED \
	"for policy, expected the full path of a .so file, at most 255 bytes\n"

static void test_policy(void **state)
{
	struct usm_config *c = good("policy /opt/a.so\npolicy /opt/b.so\npolicy /opt/a.so\n");

	(void)state;
	assert_int_equal(c->nr_policies, 2);
	assert_string_equal(c->policies[0].path, "/opt/a.so");
	assert_string_equal(c->policies[1].path, "/opt/b.so");
	usm_config_free(c);
	bad("policy a.so\n", "usmd: /f:1: bad value 'a.so' " POLICY_EXPECTED);
	bad("policy /opt/a\n", "usmd: /f:1: bad value '/opt/a' " POLICY_EXPECTED);
	bad("policy /so\n", "usmd: /f:1: bad value '/so' " POLICY_EXPECTED);
	bad("policy\n", "usmd: /f:1: 0 values for policy, expected 'policy FILE.so'\n");
}

#define ALLOW_EXPECTED "for allow, expected a user, or @ and a group, that exists\n"

static void test_allow(void **state)
{
	const gid_t groups[] = { 1000, 27 }, none[] = { 1000 };
	struct usm_config *c;

	(void)state;
	c = good("allow /usr/bin/a 1001\nallow /usr/bin/b @27\nallow /usr/bin/c root\n"
		 "allow /usr/bin/c @root\n");
	assert_int_equal(c->nr_allows, 4);
	assert_string_equal(c->allows[0].path, "/usr/bin/a");
	assert_string_equal(c->allows[0].who, "1001");
	assert_false(c->allows[0].is_group);
	assert_int_equal(c->allows[0].id, 1001);
	assert_true(c->allows[1].is_group);
	assert_int_equal(c->allows[1].id, 27);
	assert_string_equal(c->allows[3].who, "root");
	assert_int_equal(c->allows[3].id, 0);

	assert_true(usm_config_allows(c, "/usr/bin/a", 1001, none, 1));
	assert_false(usm_config_allows(c, "/usr/bin/a", 1002, groups, 2));
	assert_false(usm_config_allows(c, "/usr/bin/aa", 1001, none, 1));
	assert_false(usm_config_allows(c, "a", 1001, none, 1));
	assert_true(usm_config_allows(c, "/usr/bin/b", 1002, groups, 2));
	assert_false(usm_config_allows(c, "/usr/bin/b", 27, none, 1)); /* a uid, not a gid */
	assert_false(usm_config_allows(c, "/usr/bin/b", 1002, NULL, 0));
	assert_true(usm_config_allows(c, "/usr/bin/z", 0, NULL, 0));
	usm_config_free(c);

	bad("allow a root\n", "usmd: /f:1: bad value 'a' for allow, expected the full path of an "
			      "executable\n");
	bad("allow /a no-such-user\n", "usmd: /f:1: bad value 'no-such-user' " ALLOW_EXPECTED);
	bad("allow /a @no-such-group\n", "usmd: /f:1: bad value '@no-such-group' " ALLOW_EXPECTED);
	bad("allow /a 4294967295\n", "usmd: /f:1: bad value '4294967295' " ALLOW_EXPECTED);
	bad("allow /a @\n", "usmd: /f:1: bad value '@' " ALLOW_EXPECTED);
	bad("allow /a\n", "usmd: /f:1: 1 value for allow, expected 'allow PATH USER|@GROUP'\n");
}

static void test_search_path(void **state)
{
	char null_link[96];
	struct usm_config *c;

	(void)state;
	/* The main file comes first, then by name, whatever the directory. */
	put("etc/usmd/usmd.conf", "workers 1\nfaultaround 1\noom wait\ndefault main\n");
	put("usr/lib/usmd/conf.d/20-b.conf", "workers 2\nprocess b lib\n");
	put("run/usmd/conf.d/10-a.conf", "workers 3\nfaultaround 2\nprocess a run\n");
	assert_int_equal(load_path(&c), 0);
	assert_int_equal(c->workers, 2);
	assert_int_equal(c->faultaround, 2);
	assert_int_equal(c->oom, USM_OOM_WAIT);
	assert_string_equal(usm_config_find(c, "b")->alloc_policy, "lib");
	usm_config_free(c);

	/* /etc replaces the file of /usr/lib, /run that of /etc, as a whole. */
	put("etc/usmd/conf.d/20-b.conf", "workers 4\n");
	assert_int_equal(load_path(&c), 0);
	assert_int_equal(c->workers, 4);
	assert_null(usm_config_find(c, "b"));
	usm_config_free(c);
	put("run/usmd/conf.d/20-b.conf", "workers 5\n");
	assert_int_equal(load_path(&c), 0);
	assert_int_equal(c->workers, 5);
	usm_config_free(c);

	/* Bytes, not letters of a language: upper case before lower. */
	put("etc/usmd/conf.d/Z.conf", "default upper\n");
	put("usr/lib/usmd/conf.d/a.conf", "default lower\n");
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(c->default_policy, "lower");
	usm_config_free(c);

	/* Not read: other names, hidden files.  Replaced by nothing: a link to /dev/null. */
	put("etc/usmd/conf.d/.hidden.conf", "nonsense\n");
	put("etc/usmd/conf.d/z.conf.bak", "nonsense\n");
	put("etc/usmd/conf.d/.conf", "nonsense\n");
	put("run/usmd/conf.d/sub.conf/x", "nonsense\n");
	snprintf(null_link, sizeof(null_link), "%s/run/usmd/conf.d/a.conf", root);
	assert_int_equal(symlink("/dev/null", null_link), 0);
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "");
	assert_string_equal(c->default_policy, "upper");
	usm_config_free(c);
}

static void test_merged_record(void **state)
{
	const struct usm_config_process *p;
	struct usm_config *c;
	char path[128];

	(void)state;
	put("etc/usmd/usmd.conf", "\nprocess a one\nlimit a 1G\n");
	put("etc/usmd/conf.d/10.conf", "priority a 3\nlimit a 2G\n");
	assert_int_equal(load_path(&c), 0);
	p = usm_config_find(c, "a");
	assert_string_equal(p->alloc_policy, "one");
	assert_int_equal(p->limit_bytes, 2147483648);
	assert_int_equal(p->priority, 3);
	/* Where the policy was said, not the limit. */
	snprintf(path, sizeof(path), "%s/etc/usmd/usmd.conf", root);
	assert_string_equal(p->file, path);
	assert_int_equal(p->line, 2);
	usm_config_free(c);

	/* Both files of usmctl count, what holds until the next boot last. */
	put("etc/usmd/conf.d/50-usmctl.conf", "process a etc\nprocess b etc\n");
	put("run/usmd/conf.d/50-usmctl.conf", "process a run\n");
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(usm_config_find(c, "a")->alloc_policy, "run");
	assert_string_equal(usm_config_find(c, "b")->alloc_policy, "etc");
	usm_config_free(c);
}

static void test_unreadable(void **state)
{
	struct usm_config *c = (struct usm_config *)root;
	char link[96];

	(void)state;
	assert_int_equal(load_file("missing", &c), -ENOENT);
	assert_string_equal(logged, "usmd: /missing: can't be read: No such file or directory\n");
	put("d/x", "");
	assert_int_equal(load_file("d", &c), -EISDIR);
	assert_string_equal(logged, "usmd: /d: can't be read: Is a directory\n");
	put("etc/usmd/conf.d", "");
	assert_int_equal(load_path(&c), -ENOTDIR);
	assert_string_equal(logged, "usmd: /etc/usmd/conf.d: can't be read: Not a directory\n");
	assert_ptr_equal(c, root);

	/* A device without end. */
	capture_begin(&capture);
	assert_int_equal(usm_config_load("/dev/zero", NULL, &c), -EFBIG);
	assert_string_equal(capture_end(&capture),
			    "usmd: /dev/zero: can't be read: File too large\n");

	snprintf(link, sizeof(link), "%s/run/usmd/conf.d/x.conf", root);
	put("run/usmd/conf.d/y.conf", "");
	assert_int_equal(symlink("nowhere", link), 0);
	snprintf(link, sizeof(link), "%s/etc/usmd/conf.d", root);
	assert_int_equal(unlink(link), 0);
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "usmd: /run/usmd/conf.d/x.conf: No such file or directory, "
				    "ignoring\n");
	usm_config_free(c);
}

/* --config FILE with a runtime directory: its conf.d is read after the file. */
static void test_private_instance(void **state)
{
	struct usm_config *c;
	char file[96];

	(void)state;
	put("f", "workers 2\nprocess a one\n");
	put("conf.d/50-usmctl.conf", "process a two\n");
	put("etc/usmd/usmd.conf", "nonsense\n");
	snprintf(file, sizeof(file), "%s/f", root);
	assert_int_equal(usm_config_load(file, root, &c), 0);
	assert_int_equal(c->workers, 2);
	assert_string_equal(usm_config_find(c, "a")->alloc_policy, "two");
	usm_config_free(c);
	assert_int_equal(usm_config_load(file, "", &c), 0);
	assert_string_equal(usm_config_find(c, "a")->alloc_policy, "one");
	usm_config_free(c);
}

/* The shipped file says what is in force without it. */
static void test_shipped(void **state)
{
	struct usm_config *c;
	char text[16384], *line, *save, plain[16384] = "";
	FILE *f = fopen("conf.d/usmd.conf", "r");
	size_t n;

	(void)state;
	if (!f) {
		print_message("skipped: not run in the source directory\n");
		skip();
	}
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	c = good(text);
	assert_int_equal(c->nr_processes, 0);
	assert_int_equal(c->nr_swaps, 0);
	usm_config_free(c);

	/* With every "#directive" in force nothing changes but the examples. */
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		if (line[0] == '#' && line[1] >= 'a' && line[1] <= 'z') {
			strcat(plain, line + 1);
			strcat(plain, "\n");
		}
	c = good(plain);
	assert_int_equal(c->memory_bytes, ram() / 4 / 4096 * 4096);
	assert_int_equal(c->faultaround, 64);
	assert_int_equal(c->low_permyriad, 200);
	assert_int_equal(c->high_permyriad, 400);
	assert_int_equal(c->mechanism, USM_MECHANISM_AUTO);
	assert_int_equal(c->eviction, USM_EVICTION_AUTO);
	assert_int_equal(c->oom, USM_OOM_EXCEED);
	assert_string_equal(c->default_policy, "none");
	assert_int_equal(c->nr_swaps, 1);
	assert_int_equal(c->swaps[0].size_bytes, 0);
	assert_int_equal(c->threshold_percent, 80);
	assert_int_equal(c->nr_policies, 1);
	assert_int_equal(c->nr_allows, 1);
	assert_true(c->nr_processes > 0);
	usm_config_free(c);
}

#define HEADER "# Written by \"usmctl assign\" and \"usmctl unassign\"; see usmd.conf(5).\n"
#define ASSIGN_FILE "etc/usmd/conf.d/50-usmctl.conf"

static const char *dir(void)
{
	static char path[96];

	snprintf(path, sizeof(path), "%s/etc/usmd/conf.d", root);
	return path;
}

/* The assignments' directory holds that one file, readable by all: no litter. */
static void assert_clean(void)
{
	struct dirent *entry;
	char path[160];
	struct stat st;
	DIR *d = opendir(dir());

	assert_non_null(d);
	while ((entry = readdir(d)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			assert_string_equal(entry->d_name, "50-usmctl.conf");
	closedir(d);
	snprintf(path, sizeof(path), "%s/50-usmctl.conf", dir());
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0644);
}

static void test_assign_set(void **state)
{
	const struct usm_config_process *p;
	struct usm_config *c;

	(void)state;
	/* The directory is made, too, but only usmd's own part of the path. */
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", UINT64_MAX), -ENOENT);
	put("etc/other", "");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", UINT64_MAX), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a one\n");
	assert_clean();

	assert_int_equal(usm_config_assign_set(dir(), "b", 'b', "two", 64 * MIB), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a one\nprocess b two\nlimit b 64M\n");

	/* NULL and UINT64_MAX keep. */
	assert_int_equal(usm_config_assign_set(dir(), "a", 's', "three", UINT64_MAX), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process b two\nlimit b 64M\n"
			    "process alloc a one\nprocess swap a three\n");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', NULL, 1536 * 1024), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process b two\nlimit b 64M\n"
			    "process alloc a one\nprocess swap a three\nlimit a 1536K\n");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'a', "three", UINT64_MAX), 0);
	assert_int_equal(usm_config_assign_set(dir(), "b", 'b', "four", 0), 0);
	assert_int_equal(usm_config_assign_set(dir(), "c", 'a', "five", 1ull << 40), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a three\nlimit a 1536K\n"
			    "process b four\nlimit b 0\n"
			    "process alloc c five\nlimit c 1T\n");
	/* "No limit" stays said. */
	assert_int_equal(usm_config_assign_set(dir(), "b", 's', "six", UINT64_MAX), 0);
	assert_string_equal(get(ASSIGN_FILE), HEADER "process a three\nlimit a 1536K\n"
			    "process alloc c five\nlimit c 1T\n"
			    "process alloc b four\nprocess swap b six\nlimit b 0\n");
	assert_clean();

	/* The round trip. */
	assert_int_equal(load_path(&c), 0);
	assert_string_equal(logged, "");
	assert_int_equal(c->nr_processes, 3);
	p = usm_config_find(c, "a");
	assert_string_equal(p->alloc_policy, "three");
	assert_string_equal(p->swap_policy, "three");
	assert_int_equal(p->limit_bytes, 1572864);
	p = usm_config_find(c, "b");
	assert_string_equal(p->alloc_policy, "four");
	assert_string_equal(p->swap_policy, "six");
	assert_int_equal(p->limit_bytes, 0);
	p = usm_config_find(c, "c");
	assert_string_equal(p->alloc_policy, "five");
	assert_string_equal(p->swap_policy, "");
	assert_int_equal(p->limit_bytes, 1099511627776);
	usm_config_free(c);
}

static void test_assign_invalid(void **state)
{
	(void)state;
	put(ASSIGN_FILE, "process a one\n");
	assert_int_equal(usm_config_assign_set(dir(), "a b", 'b', "one", UINT64_MAX), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a\nworkers", 'b', "one", 0), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "", 'b', "one", UINT64_MAX), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "o/ne", UINT64_MAX), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'x', "one", UINT64_MAX), -EINVAL);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", MIB - 1), -ERANGE);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "one", (1ull << 47) + 1), -ERANGE);
	assert_int_equal(usm_config_assign_unset(dir(), "a/b"), -EINVAL);
	assert_string_equal(get(ASSIGN_FILE), "process a one\n");
	assert_clean();
}

static void test_assign_unset(void **state)
{
	(void)state;
	assert_int_equal(usm_config_assign_unset(dir(), "a"), -ENOENT);
	put(ASSIGN_FILE, "");
	assert_int_equal(usm_config_assign_unset(dir(), "a"), -ENOENT);

	assert_int_equal(usm_config_assign_set(dir(), "a", 'a', "one", 64 * MIB), 0);
	assert_int_equal(usm_config_assign_set(dir(), "aa", 'b', "two", UINT64_MAX), 0);
	assert_int_equal(usm_config_assign_set(dir(), "alloc", 'b', "two", UINT64_MAX), 0);
	assert_int_equal(usm_config_assign_unset(dir(), "b"), -ENOENT);
	assert_int_equal(usm_config_assign_unset(dir(), "two"), -ENOENT);
	assert_int_equal(usm_config_assign_unset(dir(), "a"), 0);
	assert_string_equal(get(ASSIGN_FILE), "process aa two\nprocess alloc two\n");
	assert_int_equal(usm_config_assign_unset(dir(), "a"), -ENOENT);
	assert_int_equal(usm_config_assign_unset(dir(), "alloc"), 0);
	assert_int_equal(usm_config_assign_unset(dir(), "aa"), 0);
	assert_string_equal(get(ASSIGN_FILE), "");
	assert_clean();
}

/* What somebody else wrote into the file stays; what is wrong in it is not guessed at. */
static void test_assign_foreign_lines(void **state)
{
	int r;

	(void)state;
	put(ASSIGN_FILE, "# mine  # kept\n\n  priority a 4\nprocess a one # note\n"
			 "\tlimit  a  64\nworkers 3");
	assert_int_equal(usm_config_assign_set(dir(), "a", 's', "two", UINT64_MAX), 0);
	assert_string_equal(get(ASSIGN_FILE), "# mine  # kept\n\n  priority a 4\nworkers 3\n"
			    "process alloc a one\nprocess swap a two\nlimit a 64M\n");
	assert_int_equal(usm_config_assign_unset(dir(), "a"), 0);
	assert_string_equal(get(ASSIGN_FILE), "# mine  # kept\n\n  priority a 4\nworkers 3\n");

	put(ASSIGN_FILE, "process a one\nproces b two\n");
	capture_begin(&capture);
	r = usm_config_assign_set(dir(), "a", 'b', "two", UINT64_MAX);
	keep_log();
	assert_int_equal(r, -EINVAL);
	assert_non_null(strstr(logged, "50-usmctl.conf:2: unknown directive 'proces', expected "));
	assert_string_equal(get(ASSIGN_FILE), "process a one\nproces b two\n");
	assert_clean();
}

/* The old file is replaced, never rewritten: who has it open reads the old content to
 * its end, and a directory that can't be written leaves it as it was. */
static void test_assign_atomic(void **state)
{
	char path[160], text[64] = "";
	struct stat before, after;
	FILE *f;

	(void)state;
	put(ASSIGN_FILE, "process a one\n");
	snprintf(path, sizeof(path), "%s/50-usmctl.conf", dir());
	f = fopen(path, "r");
	assert_non_null(f);
	assert_int_equal(stat(path, &before), 0);
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "two", UINT64_MAX), 0);
	assert_int_equal(stat(path, &after), 0);
	assert_true(before.st_ino != after.st_ino);
	assert_non_null(fgets(text, sizeof(text), f));
	assert_string_equal(text, "process a one\n");
	fclose(f);

	/* A full disk: the file, and nothing else, is what it was. */
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", dir(), "tmpfs", 0, "size=4096,nr_inodes=3") < 0) {
		print_message("a full disk was not tried: mounting needs root: %s\n",
			      strerror(errno));
		return;
	}
	put(ASSIGN_FILE, "process a one\n");
	assert_int_equal(usm_config_assign_set(dir(), "a", 'b', "two", UINT64_MAX), -ENOSPC);
	assert_string_equal(get(ASSIGN_FILE), "process a one\n");
	assert_clean();
	assert_int_equal(umount(dir()), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_defaults), TEST(test_nothing), TEST(test_original_file),
		TEST(test_syntax), TEST(test_every_error),
		TEST(test_memory), TEST(test_workers), TEST(test_page), TEST(test_process),
		TEST(test_priority), TEST(test_threshold), TEST(test_limit), TEST(test_default),
		TEST(test_swap), TEST(test_watermark), TEST(test_faultaround),
		TEST(test_mechanism), TEST(test_eviction), TEST(test_oom), TEST(test_policy),
		TEST(test_allow),
		TEST(test_search_path), TEST(test_merged_record), TEST(test_unreadable),
		TEST(test_private_instance), TEST(test_shipped),
		TEST(test_assign_set), TEST(test_assign_invalid), TEST(test_assign_unset),
		TEST(test_assign_foreign_lines), TEST(test_assign_atomic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
