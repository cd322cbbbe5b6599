/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* links: usmd/lib/varlink.c */
/* The framing: messages in any pieces, what is too long, what is no JSON, full queues. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/varlink.h"

struct fixture {
	int fd[2]; /* [0] is read or written by the code under test */
	struct usm_varlink_reader reader;
	struct usm_varlink_writer writer;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, f->fd), 0);
	usm_varlink_reader_init(&f->reader, 1000);
	usm_varlink_writer_init(&f->writer, 1000);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	usm_varlink_reader_done(&f->reader);
	usm_varlink_writer_done(&f->writer);
	close(f->fd[0]);
	close(f->fd[1]);
	free(f);
	return 0;
}

static void feed(struct fixture *f, const void *bytes, size_t n)
{
	assert_int_equal(write(f->fd[1], bytes, n), n);
	assert_int_equal(usm_varlink_reader_fill(&f->reader, f->fd[0]), n);
}

static void expect_message(struct fixture *f, const char *text)
{
	struct json_object *o;

	assert_int_equal(usm_varlink_reader_next(&f->reader, &o), 1);
	assert_string_equal(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN), text);
	json_object_put(o);
}

static int next(struct fixture *f)
{
	struct json_object *untouched = (void *)1, *o = untouched;
	int r = usm_varlink_reader_next(&f->reader, &o);

	if (r > 0)
		json_object_put(o);
	else
		assert_ptr_equal(o, untouched);
	return r;
}

static void test_whole_messages(void **state)
{
	struct fixture *f = *state;

	feed(f, "{\"a\":1}\0 {\"b\":{}} \0{}", 21);
	assert_true(usm_varlink_reader_pending(&f->reader));
	expect_message(f, "{\"a\":1}");
	expect_message(f, "{\"b\":{}}");
	assert_false(usm_varlink_reader_pending(&f->reader));
	assert_int_equal(next(f), 0);
	feed(f, "", 1);
	expect_message(f, "{}");
}

static void test_byte_by_byte(void **state)
{
	static const char text[] = "{\"method\":\"x\",\"more\":true}";
	struct fixture *f = *state;

	for (size_t i = 0; i + 1 < sizeof(text); i++) {
		feed(f, text + i, 1);
		assert_int_equal(next(f), 0);
	}
	feed(f, "", 1);
	expect_message(f, "{\"method\":\"x\",\"more\":true}");
}

static void test_garbage(void **state)
{
	static const char *const bad[] = {
		"", " ", "x", "{", "{\"a\":}", "[]", "1", "\"a\"", "null", "{}x", "{} {}",
		"{\"a\":1,}", "{\"a\":\"\xff\"}", "{\"a\":01}",
		"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		usm_varlink_reader_done(&f->reader);
		feed(f, bad[i], strlen(bad[i]) + 1);
		if (next(f) != -EBADMSG)
			fail_msg("accepted: %s", bad[i]);
	}
}

static void test_longest_message(void **state)
{
	struct fixture *f = *state;
	char text[1002];

	/* 1000 bytes are the limit. */
	memset(text, ' ', sizeof(text));
	memcpy(text, "{}", 2);
	text[1000] = '\0';
	feed(f, text, 1001);
	expect_message(f, "{}");

	text[1000] = ' ';
	text[1001] = '\0';
	feed(f, text, 1002);
	assert_int_equal(next(f), -EMSGSIZE);
}

static void test_endless_message(void **state)
{
	struct fixture *f = *state;
	char text[500];

	memset(text, ' ', sizeof(text));
	feed(f, text, 500);
	assert_int_equal(next(f), 0);
	feed(f, text, 500);
	assert_int_equal(next(f), 0);
	feed(f, text, 1);
	assert_true(usm_varlink_reader_pending(&f->reader));
	assert_int_equal(next(f), -EMSGSIZE);
}

static void test_reader_memory_is_bounded(void **state)
{
	struct fixture *f = *state;
	char text[1000] = {};
	int r = 0;

	while (write(f->fd[1], text, sizeof(text)) > 0)
		;
	for (int i = 0; i < 1000 && r >= 0; i++)
		r = usm_varlink_reader_fill(&f->reader, f->fd[0]);
	assert_int_equal(r, -ENOBUFS);
	assert_true(f->reader.size <= 1001 + 4096);
}

static void test_end_of_file(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(usm_varlink_reader_fill(&f->reader, f->fd[0]), -EAGAIN);
	feed(f, "{}", 2);
	shutdown(f->fd[1], SHUT_WR);
	assert_int_equal(usm_varlink_reader_fill(&f->reader, f->fd[0]), 0);
	assert_int_equal(next(f), 0);
}

static void test_writer(void **state)
{
	struct fixture *f = *state;
	struct json_object *o = json_tokener_parse("{\"path\":\"/a/b\"}");
	char buf[100];

	assert_int_equal(usm_varlink_writer_put(&f->writer, o), 0);
	assert_int_equal(usm_varlink_writer_put(&f->writer, o), 0);
	assert_int_equal(usm_varlink_writer_flush(&f->writer, f->fd[0]), 1);
	assert_int_equal(read(f->fd[1], buf, sizeof(buf)), 32);
	assert_memory_equal(buf, "{\"path\":\"/a/b\"}\0{\"path\":\"/a/b\"}\0", 32);
	assert_null(f->writer.buf);
	json_object_put(o);
}

static void test_writer_queue_is_bounded(void **state)
{
	struct fixture *f = *state;
	struct json_object *o = json_tokener_parse("{\"k\":\"0123456789\"}"); /* 19 bytes */
	int n = 0, err;

	while ((err = usm_varlink_writer_put(&f->writer, o)) == 0)
		n++;
	assert_int_equal(err, -ENOBUFS);
	assert_int_equal(n, 1000 / 19);
	json_object_put(o);
}

static void test_writer_goes_on_where_it_stopped(void **state)
{
	struct fixture *f = *state;
	struct json_object *o;
	char *text = malloc(600001), *got = malloc(700000);
	size_t n = 0;
	ssize_t r;

	memset(text, 'x', 600000);
	text[600000] = '\0';
	o = json_object_new_object();
	json_object_object_add(o, "k", json_object_new_string(text));
	usm_varlink_writer_done(&f->writer);
	usm_varlink_writer_init(&f->writer, 1000000);
	assert_int_equal(usm_varlink_writer_put(&f->writer, o), 0);
	assert_int_equal(usm_varlink_writer_flush(&f->writer, f->fd[0]), 0);
	while (n < 600009) {
		r = read(f->fd[1], got + n, 700000 - n);
		if (r > 0)
			n += (size_t)r;
		else
			assert_true(usm_varlink_writer_flush(&f->writer, f->fd[0]) >= 0);
	}
	assert_int_equal(n, 600009);
	assert_memory_equal(got + 6, text, 600000);
	assert_string_equal(got + 600006, "\"}");
	json_object_put(o);
	free(text);
	free(got);
}

static void test_writer_to_nobody(void **state)
{
	struct fixture *f = *state;
	struct json_object *o = json_object_new_object();

	assert_int_equal(usm_varlink_writer_put(&f->writer, o), 0);
	close(f->fd[1]);
	f->fd[1] = open("/dev/null", O_RDWR);
	assert_int_equal(usm_varlink_writer_flush(&f->writer, f->fd[0]), -EPIPE);
	json_object_put(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_whole_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_byte_by_byte, setup, teardown),
		cmocka_unit_test_setup_teardown(test_garbage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_longest_message, setup, teardown),
		cmocka_unit_test_setup_teardown(test_endless_message, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reader_memory_is_bounded, setup, teardown),
		cmocka_unit_test_setup_teardown(test_end_of_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_writer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_writer_queue_is_bounded, setup, teardown),
		cmocka_unit_test_setup_teardown(test_writer_goes_on_where_it_stopped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_writer_to_nobody, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
