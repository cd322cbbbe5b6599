/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/config.c usmd/config-parse.c usmd/config-assign.c usmd/lib/log.c usmd/lib/parse.c */
/* The directives, one by one. */
#include "config-fixture.h"

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
	assert_int_equal(c->grace_sec, 120);
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
	    "mechanism, eviction, oom, grace, policy, allow\n");
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

static void test_grace(void **state)
{
	struct usm_config *c = good("grace 86400\n");

	assert_int_equal(c->grace_sec, 86400);
	usm_config_free(c);
	bad("grace 0\n", "usmd: /f:1: bad value '0' for grace, expected a number of seconds from 1 "
			 "to 86400\n");
	bad("grace 1m\n", "usmd: /f:1: bad value '1m' for grace, expected a number of seconds from 1 "
			  "to 86400\n");
	(void)state;
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

	assert_true(usm_config_allows(c, "/usr/bin/a", "", 1001, none, 1));
	assert_false(usm_config_allows(c, "/usr/bin/a", "", 1002, groups, 2));
	assert_false(usm_config_allows(c, "/usr/bin/aa", "", 1001, none, 1));
	assert_false(usm_config_allows(c, "a", "", 1001, none, 1));
	assert_true(usm_config_allows(c, "/usr/bin/b", "", 1002, groups, 2));
	assert_false(usm_config_allows(c, "/usr/bin/b", "", 27, none, 1)); /* a uid, not a gid */
	assert_false(usm_config_allows(c, "/usr/bin/b", "", 1002, NULL, 0));
	assert_true(usm_config_allows(c, "/usr/bin/z", "", 0, NULL, 0));
	usm_config_free(c);

	bad("allow a root\n", "usmd: /f:1: bad value 'a' for allow, expected the full path of an "
			      "executable\n");
	bad("allow /a no-such-user\n", "usmd: /f:1: bad value 'no-such-user' " ALLOW_EXPECTED);
	bad("allow /a @no-such-group\n", "usmd: /f:1: bad value '@no-such-group' " ALLOW_EXPECTED);
	bad("allow /a 4294967295\n", "usmd: /f:1: bad value '4294967295' " ALLOW_EXPECTED);
	bad("allow /a @\n", "usmd: /f:1: bad value '@' " ALLOW_EXPECTED);
	bad("allow\n", "usmd: /f:1: 0 values for allow, expected 'allow PATH USER|@GROUP' or 'allow "
		       "unit:NAME'\n");
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
	assert_int_equal(c->nr_allows, 2);
	assert_true(c->nr_processes > 0);
	usm_config_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_defaults), TEST(test_original_file), TEST(test_syntax),
		TEST(test_memory), TEST(test_workers), TEST(test_page), TEST(test_process),
		TEST(test_priority), TEST(test_threshold), TEST(test_limit), TEST(test_default),
		TEST(test_swap), TEST(test_watermark), TEST(test_faultaround), TEST(test_grace),
		TEST(test_mechanism), TEST(test_eviction), TEST(test_oom), TEST(test_policy),
		TEST(test_allow), TEST(test_shipped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
