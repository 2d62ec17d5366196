/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _UVM_VA_SPACE_H_
#define _UVM_VA_SPACE_H_

#include <linux/fs.h>

int uvm_va_space_create(struct file *file);
void uvm_va_space_destroy(struct file *file);

#endif
