/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _NVIDIA_DRM_DRV_H_
#define _NVIDIA_DRM_DRV_H_

int nv_drm_check_formats(void);

#endif
