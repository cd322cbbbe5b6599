/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * More data than memory: fills MIB, then reads and checks a page ACCESSES times,
 * in a cycle, uniformly at random or skewed (zipf-like: most accesses go to a
 * few pages that are spread over all of it).  A tenth of the accesses, at the
 * least one cycle of a scan, go before the measurement.
 *
 *   out-of-core [OPTIONS] scan|random|zipf MIB ACCESSES
 */
#include "bench.h"

static uint64_t word(size_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull;
}

static size_t next_page(char how, size_t step, size_t n)
{
	double u;

	if (how == 's')
		return step % n;
	if (how == 'r')
		return bench_random() % n;
	/* u^4 has the skew; the multiplication scatters neighbours. */
	u = (bench_random() >> 11) * 0x1p-53;
	return (size_t)(u * u * u * u * n) * 2654435761ull % n;
}

int main(int argc, char **argv)
{
	int i = bench_options(argc, argv);
	size_t n, accesses, warm, bad = 0;
	double start = 0;
	char *p;

	bench_need(argc - i == 3, "usage: out-of-core [OPTIONS] scan|random|zipf MIB ACCESSES");
	n = (size_t)atoi(argv[i + 1]) * 256;
	accesses = atoi(argv[i + 2]);
	warm = *argv[i] == 's' ? n : accesses / 10;
	p = bench_map(n * PAGE);
	for (size_t k = 0; k < n; k++)
		*(volatile uint64_t *)(p + k * PAGE) = word(k);
	for (size_t k = 0; k < warm + accesses; k++) {
		size_t page = next_page(*argv[i], k, n);

		if (k == warm)
			start = bench_nsec();
		bad += *(volatile uint64_t *)(p + page * PAGE) != word(page);
	}
	bench_need(!bad, "a page was wrong");
	return bench_result((bench_nsec() - start) / accesses);
}
