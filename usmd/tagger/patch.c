/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libc calls its own mmap, brk and the like without going through symbols that could be
 * interposed.  So the entry of each is overwritten with a jump to the hook.
 *
 * The bytes go in through /proc/self/mem: no page becomes writable and executable at the same
 * time, and where the system does not allow the write nothing has changed.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>

#include "sys.h"
#include "tagger.h"

/* movabs $hook, %r11; jmp *%r11: r11 is the one register that the ABI leaves to such code. */
#define JUMP_BYTES 13

static unsigned char *find_function(const char *name)
{
	unsigned char *fn = dlsym(RTLD_NEXT, name);
	const ElfW(Sym) *sym = NULL;
	Dl_info info;

	if (!fn || !dladdr1(fn, &info, (void **)&sym, RTLD_DL_SYMENT) || !sym)
		return NULL;
	if (ELF64_ST_TYPE(sym->st_info) != STT_FUNC || sym->st_size < JUMP_BYTES ||
	    (unsigned char *)info.dli_saddr != fn)
		return NULL;
	return fn;
}

static bool write_jump(int mem, unsigned char *fn, void *hook)
{
	unsigned char code[JUMP_BYTES] = { 0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe3 };

	for (int i = 0; i < 8; i++)
		code[2 + i] = (unsigned char)((uint64_t)hook >> 8 * i);
	return sys4(SYS_pwrite64, mem, code, sizeof(code), fn) == sizeof(code);
}

bool usm_patch_libc(const struct usm_patch *patches, size_t nr)
{
	long mem = sys4(SYS_openat, AT_FDCWD, "/proc/self/mem", O_RDWR | O_CLOEXEC, 0);
	bool all = true;

	if (mem < 0)
		return false;
	for (size_t i = 0; i < nr; i++) {
		unsigned char *fn = find_function(patches[i].name);

		all = fn && write_jump((int)mem, fn, patches[i].hook) && all;
	}
	sys_close((int)mem);
	return all;
}
