# The CPU module: every csrc/ops/*/*_cpu.cpp compiled once per instruction set, one of which is chosen at run time.
sbhal_add_backend(cpu HOST EVERY_ISA DESTINATION "${SBHAL_BACKEND_DIR}")
sbhal_use_shared_sources(cpu ALL)
