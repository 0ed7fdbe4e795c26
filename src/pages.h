/* Large pages where the system has them; a wish, so nothing happens where it is refused. */
#ifndef RC_PAGES_H
#define RC_PAGES_H

#include <stddef.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

static inline void rc_use_huge_pages(void *data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    (void)madvise(data, bytes, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

#endif
