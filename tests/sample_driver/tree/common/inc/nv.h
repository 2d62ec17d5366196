/* SPDX-License-Identifier: GPL-2.0 */
/* Sample driver for tests: what the modules tell each other. */
#ifndef _NV_H_
#define _NV_H_

#include <linux/types.h>

#include "conftest.h"

#define NV_MAJOR_DEVICE_NUMBER		195
#define NV_CONTROL_DEVICE_MINOR		255
#define NV_PCI_VENDOR_ID		0x10de

#if NV_IS_EXPORT_SYMBOL_PRESENT_drm_format_info
#define NV_USE_DRM 1
#else
#define NV_USE_DRM 0
#endif

#define NV_MODULE_PARAMETER(x)		module_param(x, int, 0)
#define NV_MODULE_STRING_PARAMETER(x)	module_param(x, charp, 0)

/* the core object nv-kernel.o */
extern const char *pNVRM_ID;
int rm_init_rm(void);
unsigned int rm_checksum(const void *data, unsigned long size);

/* nv-pci.c */
int nv_pci_count_devices(void);
int nv_pci_num_probed(void);
int nv_pci_register_driver(void);
void nv_pci_unregister_driver(void);

/* nv-procfs.c */
int nv_procfs_init(void);
void nv_procfs_exit(void);

/* nv-frontend.c */
int nv_frontend_init(void);
void nv_frontend_exit(void);

/* nv.c: what /proc/driver/nvidia/params prints */
struct nv_parm {
	const char *name;
	const int *data;
};
extern const struct nv_parm nv_parms[];
extern char *NVreg_RegistryDwords;
extern char *NVreg_CoherentGPUMemoryMode;

/* exported by nvidia */
int nvidia_get_rm_ops(const char **version);
int nvUvmInterfaceRegisterUvmCallbacks(void (*suspend)(void));
void nvUvmInterfaceDeRegisterUvmOps(void);
int nvidia_p2p_get_pages(u64 start, u64 length);
int nvidia_p2p_put_pages(u64 start, u64 length);

/* exported by nvidia-modeset */
int nvKmsKapiGetFunctionsTable(const char **version);

#endif
