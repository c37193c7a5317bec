/* User-Mode Linux gives the kernel 2,696 bytes of processor state for a guest process, which was all
 * there was before AMX. PTRACE_SETREGSET takes nothing but the whole state, so on newer processors
 * every guest process dies of it. Preloaded into linux.uml, this adds what is missing from the state
 * that the process has. */
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define GET_REGISTER_SET 0x4204 /* PTRACE_GETREGSET */
#define SET_REGISTER_SET 0x4205 /* PTRACE_SETREGSET */
#define PROCESSOR_STATE 0x202   /* NT_X86_XSTATE */
#define LAST_PEEK 3             /* PTRACE_PEEKUSER */

static unsigned char state[1 << 16];

long ptrace(long request, long pid, void *address, void *data)
{
	long peeked;
	if (request > 0 && request <= LAST_PEEK) {
		/* The library's function returns what the kernel's writes. */
		if (syscall(SYS_ptrace, request, pid, address, &peeked) < 0)
			return -1;
		return peeked;
	}
	if (request == SET_REGISTER_SET && address == (void *)PROCESSOR_STATE) {
		const struct iovec *given = data;
		struct iovec whole = { state, sizeof(state) };
		if (syscall(SYS_ptrace, GET_REGISTER_SET, pid, address, &whole) < 0)
			return -1;
		if (given->iov_len < whole.iov_len) {
			memcpy(state, given->iov_base, given->iov_len);
			return syscall(SYS_ptrace, request, pid, address, &whole);
		}
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}
