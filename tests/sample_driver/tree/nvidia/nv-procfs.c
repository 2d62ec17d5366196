// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: /proc/driver/nvidia/version and params. */
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "nv.h"
#include "nv_compiler.h"

static struct proc_dir_entry *proc_nvidia;

static int nv_procfs_read_version(struct seq_file *s, void *v)
{
	seq_printf(s, "NVRM version: %s\n", pNVRM_ID);
	seq_printf(s, "GCC version:  %s\n", NV_COMPILER);
	return 0;
}

static int nv_procfs_read_params(struct seq_file *s, void *v)
{
	const struct nv_parm *entry;

	for (entry = nv_parms; entry->name; entry++)
		seq_printf(s, "%s: %u\n", entry->name, *entry->data);
	seq_printf(s, "RegistryDwords: \"%s\"\n", NVreg_RegistryDwords ?: "");
	seq_printf(s, "CoherentGPUMemoryMode: \"%s\"\n", NVreg_CoherentGPUMemoryMode ?: "");
	return 0;
}

int nv_procfs_init(void)
{
	proc_nvidia = proc_mkdir("driver/nvidia", NULL);
	if (proc_nvidia &&
	    proc_create_single("version", 0444, proc_nvidia, nv_procfs_read_version) &&
	    proc_create_single("params", 0444, proc_nvidia, nv_procfs_read_params))
		return 0;
	pr_err("NVRM: failed to initialize procfs.\n");
	nv_procfs_exit();
	return -ENOMEM;
}

void nv_procfs_exit(void)
{
	proc_remove(proc_nvidia);
	proc_nvidia = NULL;
}
