// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: nvidia-peermem, a stub unless MOFED's symbols are there. */
#include <linux/module.h>

#include "nv.h"

MODULE_AUTHOR("nvdriver-build tests");
MODULE_DESCRIPTION("NVIDIA GPU memory plug-in");
MODULE_LICENSE("Dual BSD/GPL");
MODULE_VERSION(NV_VERSION_STRING);

#if defined(NV_MLNX_IB_PEER_MEM_SYMBOLS_PRESENT)

#include "peer_mem.h"

static struct peer_memory_client nv_mem_client = {
	.name = "nv_mem",
	.version = NV_VERSION_STRING,
	.get_pages = nvidia_p2p_get_pages,
	.put_pages = nvidia_p2p_put_pages,
};
static void *reg_handle;

static int __init nv_mem_client_init(void)
{
	reg_handle = ib_register_peer_memory_client(&nv_mem_client, NULL);
	return reg_handle ? 0 : -EINVAL;
}

static void __exit nv_mem_client_cleanup(void)
{
	ib_unregister_peer_memory_client(reg_handle);
}

#else

static int __init nv_mem_client_init(void)
{
	pr_err("nvidia-peermem: module compiled without IB peer memory symbols present\n");
	return -EINVAL;
}

static void __exit nv_mem_client_cleanup(void)
{
}

#endif

module_init(nv_mem_client_init);
module_exit(nv_mem_client_cleanup);
