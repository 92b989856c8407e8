// A call's place in the kernel, for the reports of a simulated device; nothing on a real one.
//
// SBHAL_SITE closes a parameter list, SBHAL_HERE the argument list of a call that passes its own caller's place on, and
// the ONLY forms are whole lists. SBHAL_CONVERGE() checks that all lanes of the wavefront arrive.
#pragma once

#ifdef SBHAL_SIMT
#define SBHAL_ONLY_SITE ::simt::Site site = ::simt::here()
#define SBHAL_ONLY_HERE site
#define SBHAL_SITE , SBHAL_ONLY_SITE
#define SBHAL_HERE , SBHAL_ONLY_HERE
#define SBHAL_CONVERGE() ::simt::converge(site)
#else
#define SBHAL_ONLY_SITE
#define SBHAL_ONLY_HERE
#define SBHAL_SITE
#define SBHAL_HERE
#define SBHAL_CONVERGE()
#endif
