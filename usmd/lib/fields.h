/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Field tables: how the members of a C struct and the fields of a JSON object
 * correspond.  One table checks a request's parameters, another builds a reply.
 * A table ends with an entry without a name.
 */
#pragma once

#include <json-c/json.h>
#include <stddef.h>
#include <stdint.h>

enum usm_field_type {
	USM_FIELD_STRING, /* const char *; parsed: borrowed from the JSON object */
	USM_FIELD_CHARS,  /* char[]; build only */
	USM_FIELD_BOOL,   /* bool */
	USM_FIELD_S32,    /* int32_t, pid_t, int */
	USM_FIELD_U32,    /* uint32_t, uid_t, unsigned */
	USM_FIELD_U64,    /* uint64_t; above INT64_MAX, Varlink's largest, it is INT64_MAX */
};

#define USM_FIELD_MANDATORY  1u /* parse: must be there */
#define USM_FIELD_OMIT_EMPTY 2u /* build: leave it out when NULL or "" */

struct usm_field {
	const char *name;
	enum usm_field_type type;
	size_t offset;
	unsigned flags;
	int64_t min, max; /* parse, integers: inclusive bounds */
};

/*
 * Reads params (NULL or JSON null: no parameters) into target, strictly: an
 * unknown name, a wrong type, a number out of bounds, a string that holds a NUL
 * character, or a mandatory field that is missing gives -EINVAL and its name in
 * *ret_bad (borrowed from params or the table).  What is absent or null keeps
 * the value that target has.  On failure target is untouched.
 */
int usm_fields_parse(const struct usm_field *fields, struct json_object *params, void *target,
		     const char **ret_bad);

/* Adds source's members to an object.  -ENOMEM. */
int usm_fields_build(const struct usm_field *fields, const void *source, struct json_object *into);
/* A new array of n objects from n structs of size bytes each.  -ENOMEM. */
int usm_fields_build_array(const struct usm_field *fields, const void *source, size_t n,
			   size_t size, struct json_object **ret);
/* Adds value under name and takes it over, on failure too; NULL (a failed
 * allocation) is refused.  -ENOMEM. */
int usm_fields_add(struct json_object *into, const char *name, struct json_object *value);
