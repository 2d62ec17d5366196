// SPDX-License-Identifier: GPL-2.0
/*
 * Sample driver for tests: stands for NVIDIA's prebuilt core of nvidia-modeset. Compiled
 * by the fixture to nvidia-modeset/nv-modeset-kernel.o_binary.
 */
static const char nvidia_modeset_id[] = "nvidia-modeset id: " NVRM_ID_STRING;

int nvKmsModuleLoad(void);

int nvKmsModuleLoad(void)
{
	return nvidia_modeset_id[0] == 'n';
}
