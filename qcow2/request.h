/* SPDX-License-Identifier: GPL-2.0-or-later */
/* request.h - one guest request from submit to done. */
#ifndef QCOW2_REQUEST_H
#define QCOW2_REQUEST_H

#include "discard.h"
#include "image.h"

struct request {
	struct op op;
	struct qcow2_image *img;
	struct qcow2_req *user;
	struct range range; /* READ */
	union {
		struct reader reader;
		struct writer writer;
		struct clearer clearer;
	};
	TAILQ_ENTRY(request) link;
};

#endif
