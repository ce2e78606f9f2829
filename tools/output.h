/* SPDX-License-Identifier: GPL-2.0-or-later */
/* output.h - answers on standard output (JSON, tables), errors on standard error. */
#ifndef TOOLS_OUTPUT_H
#define TOOLS_OUTPUT_H

#include "command.h"
#include "qcow2/error.h"
#include <stdint.h>
#include <stdio.h>
#include <systemd/sd-json.h>

/* "ublk-qcow2: TEXT" on standard error; returns EXIT_FAILED. */
int report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same with what a function of the library or the daemon said; @code (-errno) if it said nothing. */
int report_error(const struct qcow2_error *err, int code);

/* Print and release a value that a builder made (@ret < 0: it could not; err is reported). */
int print_json(sd_json_variant *v, int ret);
/* A string value: file names need not be UTF-8, JSON strings are. 0 or -errno. */
int json_add_string(sd_json_variant **v, const char *key, const char *value);

/* "1.5 GiB", "512 B"; buf is returned. */
const char *human_size(char *buf, size_t size, uint64_t bytes);
/* Text for a terminal: control characters as \xNN; buf is returned. */
const char *shown(char *buf, size_t size, const char *text);

/* A table: columns as wide as their widest cell, the last one as it is. */
#define TABLE_COLUMNS 8
struct table {
	unsigned columns;
	size_t rows;
	char **cell; /* rows * columns */
	unsigned right; /* bit per column: aligned to the right */
};
/* Take a row of printf'ed cells; 0 or -ENOMEM. */
int table_row(struct table *t, const char *const cells[]);
void table_print(struct table *t, FILE *out);
void table_free(struct table *t);

#endif
