// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: the character devices. An open one holds a module reference. */
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/module.h>

#include "nv.h"

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(supported, "external");
MODULE_VERSION(NV_VERSION_STRING);
MODULE_ALIAS_CHARDEV_MAJOR(NV_MAJOR_DEVICE_NUMBER);
MODULE_FIRMWARE("nvidia/" NV_VERSION_STRING "/gsp_tu10x.bin");
MODULE_FIRMWARE("nvidia/" NV_VERSION_STRING "/gsp_ga10x.bin");
MODULE_SOFTDEP("pre: ecdh_generic ecdsa_generic");

#if defined(NV_MODULE_IMPORT_NS_TAKES_CONSTANT)
MODULE_IMPORT_NS(DMA_BUF);
#else
MODULE_IMPORT_NS("DMA_BUF");
#endif

static int nv_frontend_open(struct inode *inode, struct file *file)
{
	return iminor(inode) == NV_CONTROL_DEVICE_MINOR ? 0 : -ENODEV;
}

static const struct file_operations nv_frontend_fops = {
	.owner = THIS_MODULE,
	.open = nv_frontend_open,
};

int nv_frontend_init(void)
{
	int rc = register_chrdev(NV_MAJOR_DEVICE_NUMBER, "nvidia-frontend", &nv_frontend_fops);

	if (rc)
		pr_err("NVRM: register_chrdev() failed at %s:%d\n", __FILE__, __LINE__);
	return rc;
}

void nv_frontend_exit(void)
{
	unregister_chrdev(NV_MAJOR_DEVICE_NUMBER, "nvidia-frontend");
}
