// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: load, unload, parameters and what other modules use. */
#include <linux/module.h>

#include "nv.h"

#if NV_USE_DRM
#include <drm/drm_fourcc.h>
#endif

static int NVreg_ModifyDeviceFiles = 1;
static int NVreg_DeviceFileMode = 0666;
static int NVreg_EnableGpuFirmware = 18;
static int NVreg_OpenRmEnableUnsupportedGpus;
static int NVreg_SampleWithoutGpu;
char *NVreg_RegistryDwords;
char *NVreg_CoherentGPUMemoryMode;
static char *rm_firmware_active;

NV_MODULE_PARAMETER(NVreg_ModifyDeviceFiles);
NV_MODULE_PARAMETER(NVreg_DeviceFileMode);
NV_MODULE_PARAMETER(NVreg_EnableGpuFirmware);
NV_MODULE_PARAMETER(NVreg_OpenRmEnableUnsupportedGpus);
NV_MODULE_PARAMETER(NVreg_SampleWithoutGpu);
MODULE_PARM_DESC(NVreg_SampleWithoutGpu, "Load where no GPU is (the sample's own)");
NV_MODULE_STRING_PARAMETER(NVreg_RegistryDwords);
NV_MODULE_STRING_PARAMETER(NVreg_CoherentGPUMemoryMode);
NV_MODULE_STRING_PARAMETER(rm_firmware_active);

const struct nv_parm nv_parms[] = {
	{ "ModifyDeviceFiles", &NVreg_ModifyDeviceFiles },
	{ "DeviceFileMode", &NVreg_DeviceFileMode },
	{ "EnableGpuFirmware", &NVreg_EnableGpuFirmware },
	{ "OpenRmEnableUnsupportedGpus", &NVreg_OpenRmEnableUnsupportedGpus },
	{ }
};

static void (*uvm_suspend)(void);

int nvidia_get_rm_ops(const char **version)
{
	*version = NV_VERSION_STRING;
	return 0;
}
EXPORT_SYMBOL(nvidia_get_rm_ops);

int nvUvmInterfaceRegisterUvmCallbacks(void (*suspend)(void))
{
	if (WARN_ON(uvm_suspend))
		return -EBUSY;
	uvm_suspend = suspend;
	return 0;
}
EXPORT_SYMBOL(nvUvmInterfaceRegisterUvmCallbacks);

void nvUvmInterfaceDeRegisterUvmOps(void)
{
	uvm_suspend = NULL;
}
EXPORT_SYMBOL(nvUvmInterfaceDeRegisterUvmOps);

int nvidia_p2p_get_pages(u64 start, u64 length)
{
	return start + length < start ? -EINVAL : 0;
}
EXPORT_SYMBOL(nvidia_p2p_get_pages);

int nvidia_p2p_put_pages(u64 start, u64 length)
{
	return start + length < start ? -EINVAL : 0;
}
EXPORT_SYMBOL(nvidia_p2p_put_pages);

static int nv_check_environment(void)
{
#if NV_USE_DRM
	if (!drm_format_info(DRM_FORMAT_XRGB8888))
		return -EINVAL;
#endif
	return rm_init_rm();
}

static int nv_start_devices(int count)
{
	int rc = nv_pci_register_driver();

	if (rc) {
		pr_err("NVRM: No NVIDIA PCI devices found.\n");
		return -ENODEV;
	}
	if (nv_pci_num_probed() != count)
		pr_err("NVRM: The NVIDIA probe routine was not called for %d device(s).\n",
		       count - nv_pci_num_probed());
	if (nv_pci_num_probed() == 0 && !NVreg_SampleWithoutGpu) {
		pr_err("NVRM: No NVIDIA devices probed.\n");
		nv_pci_unregister_driver();
		return -ENODEV;
	}
	return 0;
}

static int __init nvidia_init_module(void)
{
	int count = nv_pci_count_devices();
	int rc;

	rc = nv_check_environment();
	if (rc) {
		pr_err("NVRM: rm_init_rm() failed at %s:%d\n", __FILE__, __LINE__);
		return rc;
	}
	if (count == 0 && !NVreg_SampleWithoutGpu) {
		pr_err("NVRM: No NVIDIA GPU found.\n");
		return -ENODEV;
	}
	rc = nv_procfs_init();
	if (rc)
		return rc;
	rc = nv_frontend_init();
	if (rc)
		goto procfs;
	rc = nv_start_devices(count);
	if (rc)
		goto frontend;
	pr_info("NVRM: loading %s\n", pNVRM_ID);
	return 0;

frontend:
	nv_frontend_exit();
procfs:
	nv_procfs_exit();
	return rc;
}

static void __exit nvidia_exit_module(void)
{
	nv_pci_unregister_driver();
	nv_frontend_exit();
	nv_procfs_exit();
}

module_init(nvidia_init_module);
module_exit(nvidia_exit_module);
