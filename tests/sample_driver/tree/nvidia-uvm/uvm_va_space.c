// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: one small allocation for each open file. */
#include <linux/mutex.h>
#include <linux/slab.h>

#include "uvm_va_space.h"

struct uvm_va_space {
	struct mutex lock;
	u64 start;
	u64 end;
};

int uvm_va_space_create(struct file *file)
{
	struct uvm_va_space *va_space = kzalloc(sizeof(*va_space), GFP_KERNEL);

	if (!va_space)
		return -ENOMEM;
	mutex_init(&va_space->lock);
	file->private_data = va_space;
	return 0;
}

void uvm_va_space_destroy(struct file *file)
{
	kfree(file->private_data);
}
