/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The swap file: one kind of swap device.  Format, quiesce and the reasons are in
 * docs/swap.md.
 */
#pragma once

#include <stdint.h>

#include "swap-ops.h"

#define USM_SWAP_FILE_MAGIC   0x50415753444d5355ull /* "USMDSWAP" */
#define USM_SWAP_FILE_VERSION 1u

/* Where the parts lie, in bytes.  The scratch block is aligned to its size, so that
 * punching it frees whole blocks on file systems with blocks up to 64 KiB. */
#define USM_SWAP_FILE_SCRATCH       65536u
#define USM_SWAP_FILE_SCRATCH_BYTES 65536u
#define USM_SWAP_FILE_DATA          (USM_SWAP_FILE_SCRATCH + USM_SWAP_FILE_SCRATCH_BYTES)

/* The smallest file. */
#define USM_SWAP_FILE_MIN_BYTES (1024u * 1024u)

enum usm_swap_file_state {
	USM_SWAP_FILE_FILLING = 1, /* being created; found later: its creator died */
	USM_SWAP_FILE_READY = 2,
};

/* The header, at offset 0, little endian as the machines are; the rest of its page
 * is zero. */
struct usm_swap_file_header {
	uint64_t magic;
	uint32_t version;
	uint32_t state; /* enum usm_swap_file_state */
	uint8_t uuid[16];
	uint64_t size_bytes; /* of the whole file */
	uint32_t page_bytes;
	uint32_t reserved;
	uint64_t checksum; /* XXH3_64bits of what comes before */
};

/* Slots of a file of size_bytes. */
static inline uint64_t usm_swap_file_slots(uint64_t size_bytes)
{
	return (size_bytes - USM_SWAP_FILE_DATA) / USM_SWAP_PAGE;
}

extern const struct usm_swap_device_ops usm_swap_file_ops;
