/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _CONFTEST_H_
#define _CONFTEST_H_

#include "conftest/headers.h"
#include "conftest/functions.h"
#include "conftest/generic.h"
#include "conftest/macros.h"
#include "conftest/symbols.h"
#include "conftest/types.h"

#endif
