// SPDX-License-Identifier: GPL-2.0
/*
 * Sample driver for tests: stands for NVIDIA's prebuilt core, which does not know the
 * kernel. Compiled by the fixture to nvidia/nv-kernel.o_binary.
 */
static const char nvidia_id[] = "nvidia id: " NVRM_ID_STRING;

const char *pNVRM_ID = nvidia_id + sizeof("nvidia id: ") - 1;

unsigned int rm_checksum(const void *data, unsigned long size);
int rm_init_rm(void);

unsigned int rm_checksum(const void *data, unsigned long size)
{
	const unsigned char *byte = data;
	unsigned int sum = 0;

	while (size--)
		sum = sum * 31 + *byte++;
	return sum;
}

int rm_init_rm(void)
{
	return rm_checksum(nvidia_id, sizeof(nvidia_id)) ? 0 : -1;
}
