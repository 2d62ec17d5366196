// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: nvidia-uvm, which uses nvidia. */
#include <linux/fs.h>
#include <linux/module.h>

#include "nv.h"
#include "uvm_va_space.h"

static int uvm_debug_prints;
module_param(uvm_debug_prints, int, 0644);
MODULE_PARM_DESC(uvm_debug_prints, "Enable uvm debug prints.");

static int uvm_major;

static int uvm_open(struct inode *inode, struct file *file)
{
	if (uvm_debug_prints)
		pr_info("nvidia-uvm: open at %s:%d\n", __FILE__, __LINE__);
	return uvm_va_space_create(file);
}

static int uvm_release(struct inode *inode, struct file *file)
{
	uvm_va_space_destroy(file);
	return 0;
}

static const struct file_operations uvm_fops = {
	.owner = THIS_MODULE,
	.open = uvm_open,
	.release = uvm_release,
};

static void uvm_suspend(void)
{
}

static int __init uvm_init_entry(void)
{
	int rc = nvUvmInterfaceRegisterUvmCallbacks(uvm_suspend);

	if (rc)
		return rc;
	uvm_major = register_chrdev(0, "nvidia-uvm", &uvm_fops);
	if (uvm_major < 0) {
		nvUvmInterfaceDeRegisterUvmOps();
		return uvm_major;
	}
	pr_info("nvidia-uvm: Loaded the UVM driver, major device number %d.\n", uvm_major);
	return 0;
}

static void __exit uvm_exit_entry(void)
{
	unregister_chrdev(uvm_major, "nvidia-uvm");
	nvUvmInterfaceDeRegisterUvmOps();
	pr_info("nvidia-uvm: Unloaded the UVM driver.\n");
}

module_init(uvm_init_entry);
module_exit(uvm_exit_entry);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(supported, "external");
MODULE_VERSION(NV_VERSION_STRING);
