/* SPDX-License-Identifier: GPL-2.0 */
/* Sample driver for tests: MOFED's interface, which NVIDIA's source brings along too. */
#include <linux/types.h>

struct peer_memory_client {
	char name[64];
	char version[16];
	int (*get_pages)(u64 start, u64 length);
	int (*put_pages)(u64 start, u64 length);
};

void *ib_register_peer_memory_client(const struct peer_memory_client *client, void *invalidate);
void ib_unregister_peer_memory_client(void *handle);
