// SPDX-License-Identifier: GPL-2.0
/*
 * Sample driver for tests: uses GPL-only symbols of the namespace DMA_BUF, so the
 * proprietary kind leaves this file out.
 */
#include <linux/dma-buf.h>
#include <linux/module.h>

#include "nv.h"

int nvidia_dma_buf_size(int fd, u64 *size);

int nvidia_dma_buf_size(int fd, u64 *size)
{
	struct dma_buf *buf = dma_buf_get(fd);

	if (IS_ERR(buf))
		return PTR_ERR(buf);
	*size = buf->size;
	dma_buf_put(buf);
	return 0;
}
EXPORT_SYMBOL_GPL(nvidia_dma_buf_size);
