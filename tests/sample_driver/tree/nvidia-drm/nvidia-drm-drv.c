// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: uses drm and drm_kms_helper where the kernel has them. */
#include "nv.h"
#include "nvidia-drm-drv.h"

#if NV_USE_DRM && defined(NV_DRM_AVAILABLE)

#include <drm/drm_atomic_helper.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_mode_config.h>

extern const struct drm_mode_config_funcs nv_drm_mode_config_funcs;
const struct drm_mode_config_funcs nv_drm_mode_config_funcs = {
	.atomic_check = drm_atomic_helper_check,
};

int nv_drm_check_formats(void)
{
	return drm_format_info(DRM_FORMAT_XRGB8888) ? 0 : -EINVAL;
}

#else

int nv_drm_check_formats(void)
{
	return 0;
}

#endif
