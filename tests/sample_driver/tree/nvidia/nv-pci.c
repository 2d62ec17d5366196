// SPDX-License-Identifier: GPL-2.0
/* Sample driver for tests: the PCI driver. It takes a GPU and leaves it alone. */
#include <linux/module.h>
#include <linux/pci.h>

#include "nv.h"

#define NV_PCI_CLASS(code) \
	{ PCI_DEVICE(NV_PCI_VENDOR_ID, PCI_ANY_ID), .class = (code) << 8, .class_mask = ~0 }

static const struct pci_device_id nv_pci_table[] = {
	NV_PCI_CLASS(PCI_CLASS_DISPLAY_VGA),
	NV_PCI_CLASS(PCI_CLASS_DISPLAY_3D),
	NV_PCI_CLASS(PCI_CLASS_BRIDGE_OTHER),
	{ }
};
MODULE_DEVICE_TABLE(pci, nv_pci_table);

static int num_probed;

static int nv_pci_probe(struct pci_dev *dev, const struct pci_device_id *id)
{
	num_probed++;
	return 0;
}

static void nv_pci_remove(struct pci_dev *dev)
{
	num_probed--;
}

static struct pci_driver nv_pci_driver = {
	.name = "nvidia",
	.id_table = nv_pci_table,
	.probe = nv_pci_probe,
	.remove = nv_pci_remove,
#if defined(NV_PCI_DRIVER_HAS_DRIVER_MANAGED_DMA)
	.driver_managed_dma = false,
#endif
};

int nv_pci_count_devices(void)
{
	struct pci_dev *dev = NULL;
	int count = 0;

	while ((dev = pci_get_device(NV_PCI_VENDOR_ID, PCI_ANY_ID, dev)))
		if (pci_match_id(nv_pci_table, dev))
			count++;
	return count;
}

int nv_pci_num_probed(void)
{
	return num_probed;
}

int nv_pci_register_driver(void)
{
	return pci_register_driver(&nv_pci_driver);
}

void nv_pci_unregister_driver(void)
{
	pci_unregister_driver(&nv_pci_driver);
}
