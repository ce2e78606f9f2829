// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * output.c - standard output carries only the answer, and names in it cannot play with the terminal.
 */
#include "output.h"
#include "qcow2/header.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int report(const char *fmt, ...)
{
	va_list ap;

	fputs("ublk-qcow2: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return EXIT_FAILED;
}

int report_error(const struct qcow2_error *err, int code)
{
	return report("%s", err->text[0] ? err->text : strerror(-code));
}

int print_json(sd_json_variant *v, int ret)
{
	if (ret >= 0)
		ret = sd_json_variant_dump(v, SD_JSON_FORMAT_PRETTY_AUTO | SD_JSON_FORMAT_NEWLINE, stdout,
					   NULL);
	sd_json_variant_unref(v);
	return ret < 0 ? report("cannot write JSON: %s", strerror(-ret)) : EXIT_DONE;
}

int json_add_string(sd_json_variant **v, const char *key, const char *value)
{
	char text[8192];
	int ret = sd_json_variant_set_field_string(v, key, value);

	if (ret < 0 && ret != -ENOMEM)
		ret = sd_json_variant_set_field_string(v, key, shown(text, sizeof(text), value));
	return ret < 0 ? ret : 0;
}

const char *human_size(char *buf, size_t size, uint64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double value = (double)bytes;
	unsigned u = 0;

	for (; value >= 1024 && u < 6; u++)
		value /= 1024;
	snprintf(buf, size, value >= 100 || value == (double)(uint64_t)value ? "%.0f %s" : "%.3g %s", value,
		 units[u]);
	return buf;
}

const char *shown(char *buf, size_t size, const char *text)
{
	escape_name(buf, size, text, strlen(text));
	return buf;
}

/* ---- tables ---- */

int table_row(struct table *t, const char *const cells[])
{
	char **more = realloc(t->cell, (t->rows + 1) * t->columns * sizeof(*more));
	unsigned i;

	if (!more)
		return -ENOMEM;
	t->cell = more;
	for (i = 0; i < t->columns; i++) {
		more[t->rows * t->columns + i] = strdup(cells[i]);
		if (!more[t->rows * t->columns + i]) {
			while (i--)
				free(more[t->rows * t->columns + i]);
			return -ENOMEM;
		}
	}
	t->rows++;
	return 0;
}

void table_print(struct table *t, FILE *out)
{
	int width[TABLE_COLUMNS] = { 0 };
	const char *cell;
	size_t row;
	unsigned i;

	for (row = 0; row < t->rows; row++)
		for (i = 0; i < t->columns; i++)
			if ((int)strlen(t->cell[row * t->columns + i]) > width[i])
				width[i] = (int)strlen(t->cell[row * t->columns + i]);
	for (row = 0; row < t->rows; row++) {
		for (i = 0; i < t->columns; i++) {
			cell = t->cell[row * t->columns + i];
			if (t->right & 1u << i)
				fprintf(out, "%*s", width[i], cell);
			else if (i + 1 < t->columns)
				fprintf(out, "%-*s", width[i], cell);
			else
				fputs(cell, out);
			fputs(i + 1 < t->columns ? "  " : "\n", out);
		}
	}
}

void table_free(struct table *t)
{
	size_t i;

	for (i = 0; i < t->rows * t->columns; i++)
		free(t->cell[i]);
	free(t->cell);
	t->cell = NULL;
	t->rows = 0;
}
