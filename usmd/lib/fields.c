/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fields.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>


static const struct usm_field *field_find(const struct usm_field *fields, const char *name)
{
	for (const struct usm_field *f = fields; f->name; f++)
		if (strcmp(f->name, name) == 0)
			return f;
	return NULL;
}

static bool value_fits(const struct usm_field *f, struct json_object *value)
{
	switch (f->type) {
	case USM_FIELD_STRING:
		return json_object_is_type(value, json_type_string) &&
		       strlen(json_object_get_string(value)) ==
			       (size_t)json_object_get_string_len(value);
	case USM_FIELD_BOOL:
		return json_object_is_type(value, json_type_boolean);
	case USM_FIELD_S32:
	case USM_FIELD_U32:
	case USM_FIELD_U64:
		return json_object_is_type(value, json_type_int) &&
		       json_object_get_int64(value) >= f->min &&
		       json_object_get_int64(value) <= f->max;
	case USM_FIELD_CHARS:
		break;
	}
	return false;
}

static void value_store(const struct usm_field *f, struct json_object *value, void *target)
{
	void *p = (char *)target + f->offset;

	switch (f->type) {
	case USM_FIELD_STRING:
		*(const char **)p = json_object_get_string(value);
		break;
	case USM_FIELD_BOOL:
		*(bool *)p = json_object_get_boolean(value);
		break;
	case USM_FIELD_S32:
		*(int32_t *)p = (int32_t)json_object_get_int64(value);
		break;
	case USM_FIELD_U32:
		*(uint32_t *)p = (uint32_t)json_object_get_int64(value);
		break;
	case USM_FIELD_U64:
		*(uint64_t *)p = (uint64_t)json_object_get_int64(value);
		break;
	case USM_FIELD_CHARS:
		break;
	}
}

int usm_fields_parse(const struct usm_field *fields, struct json_object *params, void *target,
		     const char **ret_bad)
{
	struct json_object_iterator it, end;

	if (params && !json_object_is_type(params, json_type_object)) {
		*ret_bad = "parameters";
		return -EINVAL;
	}
	if (params) {
		end = json_object_iter_end(params);
		for (it = json_object_iter_begin(params); !json_object_iter_equal(&it, &end);
		     json_object_iter_next(&it)) {
			const char *name = json_object_iter_peek_name(&it);
			struct json_object *value = json_object_iter_peek_value(&it);
			const struct usm_field *f = field_find(fields, name);

			if (!f || (value && !value_fits(f, value))) {
				*ret_bad = name;
				return -EINVAL;
			}
		}
	}

	for (const struct usm_field *f = fields; f->name; f++)
		if ((f->flags & USM_FIELD_MANDATORY) && !json_object_object_get(params, f->name)) {
			*ret_bad = f->name;
			return -EINVAL;
		}

	for (const struct usm_field *f = fields; f->name; f++) {
		struct json_object *value = json_object_object_get(params, f->name);

		if (value)
			value_store(f, value, target);
	}
	return 0;
}

int usm_fields_add(struct json_object *into, const char *name, struct json_object *value)
{
	if (!value)
		return -ENOMEM;
	if (json_object_object_add(into, name, value) < 0) {
		json_object_put(value);
		return -ENOMEM;
	}
	return 0;
}

/* The value as JSON; NULL when there is no memory. */
static struct json_object *value_build(const struct usm_field *f, const void *p)
{
	const char *s;
	uint64_t u;

	switch (f->type) {
	case USM_FIELD_STRING:
		s = *(const char *const *)p;
		return json_object_new_string(s ? s : "");
	case USM_FIELD_CHARS:
		return json_object_new_string(p);
	case USM_FIELD_BOOL:
		return json_object_new_boolean(*(const bool *)p);
	case USM_FIELD_S32:
		return json_object_new_int64(*(const int32_t *)p);
	case USM_FIELD_U32:
		return json_object_new_int64(*(const uint32_t *)p);
	case USM_FIELD_U64:
		u = *(const uint64_t *)p;
		return json_object_new_int64(u > INT64_MAX ? INT64_MAX : (int64_t)u);
	}
	return NULL;
}

static bool value_is_empty(const struct usm_field *f, const void *p)
{
	const char *s = NULL;

	if (f->type == USM_FIELD_STRING)
		s = *(const char *const *)p;
	else if (f->type == USM_FIELD_CHARS)
		s = p;
	else
		return false;
	return !s || !s[0];
}

int usm_fields_build(const struct usm_field *fields, const void *source, struct json_object *into)
{
	for (const struct usm_field *f = fields; f->name; f++) {
		const void *p = (const char *)source + f->offset;
		int err;

		if ((f->flags & USM_FIELD_OMIT_EMPTY) && value_is_empty(f, p))
			continue;
		err = usm_fields_add(into, f->name, value_build(f, p));
		if (err < 0)
			return err;
	}
	return 0;
}

int usm_fields_build_array(const struct usm_field *fields, const void *source, size_t n,
			   size_t size, struct json_object **ret)
{
	struct json_object *array = json_object_new_array();

	if (!array)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		struct json_object *item = json_object_new_object();

		if (!item ||
		    usm_fields_build(fields, (const char *)source + i * size, item) < 0 ||
		    json_object_array_add(array, item) < 0) {
			json_object_put(item);
			json_object_put(array);
			return -ENOMEM;
		}
	}
	*ret = array;
	return 0;
}
