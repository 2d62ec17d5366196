// SPDX-License-Identifier: GPL-2.0
/*
 * firmware_reader - asks the kernel for one firmware file while it is loaded.
 *
 * For tests only: insmod succeeds where request_firmware() finds the file, and
 * the kernel log then has its size.
 */
#include <linux/device.h>
#include <linux/err.h>
#include <linux/firmware.h>
#include <linux/module.h>

static char *name = "";
module_param(name, charp, 0444);

static int __init firmware_reader_init(void)
{
	struct device *device = root_device_register("firmware_reader");
	const struct firmware *firmware;
	int rc;

	if (IS_ERR(device))
		return PTR_ERR(device);
	rc = request_firmware_direct(&firmware, name, device);
	root_device_unregister(device);
	if (rc)
		return rc;
	pr_info("firmware_reader: %s has %zu bytes\n", name, firmware->size);
	release_firmware(firmware);
	return 0;
}

static void __exit firmware_reader_exit(void)
{
}

module_init(firmware_reader_init);
module_exit(firmware_reader_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Reads one firmware file, for tests");
