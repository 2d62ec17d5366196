// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: nvidia-modeset, which uses nvidia and the kernel's video. */
#include <linux/module.h>

#include "nv.h"

#if defined(NV_ACPI_VIDEO_BACKLIGHT_USE_NATIVE_PRESENT)
#include <acpi/video.h>
#endif

static bool malloc_verbose;
module_param_named(malloc_verbose, malloc_verbose, bool, 0400);
MODULE_PARM_DESC(malloc_verbose, "Report information about malloc calls on module unload");

static char *config_file;
module_param_named(config_file, config_file, charp, 0400);
MODULE_PARM_DESC(config_file, "Path to the nvidia-modeset configuration file");

/* the core object nv-modeset-kernel.o */
int nvKmsModuleLoad(void);

int nvKmsKapiGetFunctionsTable(const char **version)
{
	*version = NV_VERSION_STRING;
	return 0;
}
EXPORT_SYMBOL(nvKmsKapiGetFunctionsTable);

static bool nvkms_native_backlight(void)
{
#if defined(NV_ACPI_VIDEO_BACKLIGHT_USE_NATIVE_PRESENT)
	return acpi_video_backlight_use_native();
#else
	return false;
#endif
}

static int __init nvkms_init(void)
{
	const char *version;
	int rc = nvidia_get_rm_ops(&version);

	if (rc || strcmp(version, NV_VERSION_STRING))
		return rc ?: -EINVAL;
	if (!nvKmsModuleLoad())
		return -EINVAL;
	pr_info("nvidia-modeset: Loading NVIDIA Kernel Mode Setting Driver for UNIX platforms  %s%s\n",
		NV_VERSION_STRING, nvkms_native_backlight() ? " (native backlight)" : "");
	return 0;
}

static void __exit nvkms_exit(void)
{
	pr_info("nvidia-modeset: Unloading\n");
}

module_init(nvkms_init);
module_exit(nvkms_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(supported, "external");
MODULE_VERSION(NV_VERSION_STRING);
