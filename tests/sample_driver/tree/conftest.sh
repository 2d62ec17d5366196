#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Sample driver for tests: asks the kernel headers what they offer.
#
#   conftest.sh CC ARCH SOURCES OUTPUT build_cflags
#   conftest.sh CC ARCH SOURCES OUTPUT test_kernel_header CFLAGS HEADER
#   conftest.sh CC ARCH SOURCES OUTPUT compile_tests CFLAGS TEST
#   conftest.sh CC ARCH SOURCES OUTPUT uts_release
#   conftest.sh CC ARCH SOURCES OUTPUT *_sanity_check|cc_version_check full_output
#
# As with NVIDIA's, a test that cannot compile for a wrong reason (wrong headers) says
# nothing and comes out negative, and the work files lie beside the script.

cd "$(dirname "$0")" || exit 1

CC=$1 ARCH=$2 SOURCES=$3 OUTPUT=$4 COMMAND=$5
KERNEL_ARCH=$ARCH
[ "$ARCH" = x86_64 ] && KERNEL_ARCH=x86
WORK=conftest$$

quiet() {
    "$@" > /dev/null 2>&1
}

# $1: C code
compiles() {
    printf '%s\n' '#include <linux/kconfig.h>' '#include <linux/module.h>' "$1" > $WORK.c
    quiet $CC $CFLAGS -fsyntax-only $WORK.c
    result=$?
    rm -f $WORK.c
    return $result
}

# $1: macro, $2: exit status of the test
define() {
    if [ "$2" -eq 0 ]; then echo "#define $1"; else echo "#undef $1"; fi
}

# $1: name, $2: end of the export type, as a basic regular expression
exported() {
    grep -q "	$1	.*	EXPORT_SYMBOL$2\(	\|\$\)" "$OUTPUT/Module.symvers"
}

# $1: configuration symbol
configured() {
    grep -q "^#define $1 1" "$OUTPUT/include/generated/autoconf.h"
}

mofed_symvers() {
    ofa=/usr/src/ofa_kernel
    for dir in "$OUTPUT" "$ofa/$ARCH/$KERNELRELEASE" "$ofa/$KERNELRELEASE" "$ofa/default"; do
        quiet grep -q "	ib_register_peer_memory_client	" "$dir/Module.symvers" && return 0
    done
    return 1
}

compile_test() {
    case "$1" in
    acpi_video_backlight_use_native)
        compiles '#include <acpi/video.h>
            bool conftest(void) { return acpi_video_backlight_use_native(); }'
        define NV_ACPI_VIDEO_BACKLIGHT_USE_NATIVE_PRESENT $?
        ;;
    set_pages_array_uncached)
        compiles '#include <asm/set_memory.h>
            int conftest(struct page **p) { return set_pages_array_uncached(p, 1); }'
        define NV_SET_PAGES_ARRAY_UNCACHED_PRESENT $?
        ;;
    proc_ops)
        compiles '#include <linux/proc_fs.h>
            struct proc_ops conftest;'
        define NV_PROC_OPS_PRESENT $?
        ;;
    pci_driver_has_driver_managed_dma)
        compiles '#include <linux/pci.h>
            bool conftest(struct pci_driver *d) { return d->driver_managed_dma; }'
        define NV_PCI_DRIVER_HAS_DRIVER_MANAGED_DMA $?
        ;;
    drm_available)
        compiles '#if !defined(CONFIG_DRM) && !defined(CONFIG_DRM_MODULE)
            #error no DRM
            #endif'
        define NV_DRM_AVAILABLE $?
        ;;
    module_import_ns_takes_constant)
        compiles 'MODULE_IMPORT_NS(DMA_BUF);'
        define NV_MODULE_IMPORT_NS_TAKES_CONSTANT $?
        ;;
    ib_peer_memory_symbols)
        mofed_symvers
        define NV_MLNX_IB_PEER_MEM_SYMBOLS_PRESENT $?
        ;;
    is_export_symbol_present_*)
        symbol=${1#is_export_symbol_present_}
        if quiet exported "$symbol" '.*'; then present=1; else present=0; fi
        echo "#define NV_IS_EXPORT_SYMBOL_PRESENT_$symbol $present"
        ;;
    is_export_symbol_gpl_*)
        symbol=${1#is_export_symbol_gpl_}
        if quiet exported "$symbol" '_GPL'; then gpl=1; else gpl=0; fi
        echo "#define NV_IS_EXPORT_SYMBOL_GPL_$symbol $gpl"
        ;;
    *)
        echo "Error: unknown conftest '$1' requested" >&2
        exit 1
        ;;
    esac
}

case "$COMMAND" in
build_cflags)
    arch_source=$SOURCES/arch/$KERNEL_ARCH/include
    arch_output=$OUTPUT/arch/$KERNEL_ARCH/include/generated
    echo "-nostdinc -isystem $($CC -print-file-name=include)" \
        "-D__KERNEL__ -DMODULE -DKBUILD_BASENAME=\"conftest\" -DKBUILD_MODNAME=\"conftest\"" \
        "-I$arch_source -I$arch_output -I$SOURCES/include -I$OUTPUT/include" \
        "-I$arch_source/uapi -I$arch_output/uapi -I$SOURCES/include/uapi -I$OUTPUT/include/generated/uapi" \
        "-include $SOURCES/include/linux/kconfig.h -include $SOURCES/include/linux/compiler_types.h"
    ;;
test_kernel_header)
    CFLAGS=$6
    echo "#include <$7>" > $WORK.c
    quiet $CC $CFLAGS -E -M $WORK.c
    define "NV_$(echo "$7" | tr '/.\-a-z' '___A-Z')_PRESENT" $?
    rm -f $WORK.c
    ;;
compile_tests)
    CFLAGS=$6
    compile_test "$7"
    ;;
uts_release)
    cat "$OUTPUT/include/generated/utsrelease.h"
    ;;
cc_sanity_check)
    echo 'int conftest(void) { return 0; }' > $WORK.c
    if ! quiet $CC -c $WORK.c -o $WORK.o; then
        rm -f $WORK.c
        echo "The C compiler '$CC' does not appear to be able to create object files."
        echo "*** Failed CC sanity check. Bailing out! ***"
        exit 1
    fi
    rm -f $WORK.c $WORK.o
    ;;
cc_version_check)
    # A mismatch is only told, as in NVIDIA's.
    [ -n "$IGNORE_CC_MISMATCH" ] && exit 0
    kernel_major=$(sed -n 's/^#define CONFIG_GCC_VERSION \([0-9]*\)[0-9]\{4\}$/\1/p' \
        "$OUTPUT/include/generated/autoconf.h" 2>/dev/null)
    major=$($CC -dumpversion | cut -d . -f 1)
    if [ -n "$kernel_major" ] && [ "$kernel_major" != "$major" ]; then
        echo "Warning: the kernel was built with gcc $kernel_major, this is gcc $major."
        echo "*** Failed CC version check. ***"
    fi
    ;;
preempt_rt_sanity_check)
    if [ -z "$IGNORE_PREEMPT_RT_PRESENCE" ] && configured CONFIG_PREEMPT_RT; then
        echo "The kernel you are installing for is a PREEMPT_RT kernel!"
        echo "*** Failed PREEMPT_RT sanity check. Bailing out! ***"
        exit 1
    fi
    ;;
module_symvers_sanity_check)
    if [ -z "$IGNORE_MISSING_MODULE_SYMVERS" ] && ! quiet grep -q "	vmlinux	" "$OUTPUT/Module.symvers"; then
        echo "$OUTPUT/Module.symvers is missing, or holds no symbol of vmlinux."
        echo "*** Failed Module.symvers sanity check. Bailing out! ***"
        exit 1
    fi
    ;;
*)
    echo "Error: unknown command '$COMMAND'" >&2
    exit 1
    ;;
esac
