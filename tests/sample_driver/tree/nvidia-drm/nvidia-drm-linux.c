// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: nvidia-drm, which uses nvidia-modeset. */
#include <linux/module.h>

#include "nv.h"
#include "nvidia-drm-drv.h"

static bool nv_drm_modeset;
module_param_named(modeset, nv_drm_modeset, bool, 0400);
MODULE_PARM_DESC(modeset, "Enable atomic kernel modesetting (1 = enable, 0 = disable (default))");

static int __init nv_linux_drm_init(void)
{
	const char *version;
	int rc = nvKmsKapiGetFunctionsTable(&version);

	if (rc)
		return rc;
	rc = nv_drm_check_formats();
	if (!rc && nv_drm_modeset)
		pr_info("[drm] Initialized nvidia-drm %s\n", version);
	return rc;
}

static void __exit nv_linux_drm_exit(void)
{
}

module_init(nv_linux_drm_init);
module_exit(nv_linux_drm_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(supported, "external");
MODULE_VERSION(NV_VERSION_STRING);
