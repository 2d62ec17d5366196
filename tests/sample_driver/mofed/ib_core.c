// SPDX-License-Identifier: GPL-2.0
/* Stand-in for MOFED's ib_core: takes clients of peer memory and does nothing with them. */
#include <linux/module.h>

MODULE_LICENSE("Dual BSD/GPL");
MODULE_DESCRIPTION("stand-in for MOFED's ib_core");

struct peer_memory_client {
	char name[64];
	char version[16];
};

#ifdef ANOTHER_MOFED
/* Another prototype, hence another CRC. */
void *ib_register_peer_memory_client(const struct peer_memory_client *client, void *invalidate, int flags);
void *ib_register_peer_memory_client(const struct peer_memory_client *client, void *invalidate, int flags)
#else
void *ib_register_peer_memory_client(const struct peer_memory_client *client, void *invalidate);
void *ib_register_peer_memory_client(const struct peer_memory_client *client, void *invalidate)
#endif
{
	pr_info("peer memory client %s registered\n", client->name);
	return (void *)client;
}
EXPORT_SYMBOL(ib_register_peer_memory_client);

void ib_unregister_peer_memory_client(void *handle);
void ib_unregister_peer_memory_client(void *handle)
{
	const struct peer_memory_client *client = handle;

	pr_info("peer memory client %s gone\n", client->name);
}
EXPORT_SYMBOL(ib_unregister_peer_memory_client);
