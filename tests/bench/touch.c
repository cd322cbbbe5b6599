/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * First touch: writes each of N pages that lie STRIDE pages apart once, in order
 * or at random.  With a stride beyond any fault-around each fault stands alone.
 *
 *   touch [OPTIONS] seq|random N STRIDE
 */
#include "bench.h"

int main(int argc, char **argv)
{
	int i = bench_options(argc, argv);
	uint32_t n, stride, *order;
	double start, end;
	char *p;

	bench_need(argc - i == 3, "usage: touch [OPTIONS] seq|random N STRIDE");
	n = atoi(argv[i + 1]);
	stride = atoi(argv[i + 2]);
	order = malloc(n * sizeof(*order));
	bench_need(order, "malloc");
	for (uint32_t k = 0; k < n; k++)
		order[k] = k;
	for (uint32_t k = n; !strcmp(argv[i], "random") && k > 1; k--) {
		uint32_t other = bench_random() % k, kept = order[k - 1];

		order[k - 1] = order[other];
		order[other] = kept;
	}
	p = bench_map(PAGE * n * stride);
	start = bench_nsec();
	for (uint32_t k = 0; k < n; k++)
		*(volatile char *)(p + PAGE * stride * order[k]) = 1;
	end = bench_nsec();
	return bench_result((end - start) / n);
}
