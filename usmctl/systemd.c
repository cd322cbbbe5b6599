/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "systemd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "lib/cleanup.h"
#include "lib/parse.h"
#include "tagger.h"

#define SYSTEMD	  "org.freedesktop.systemd1"
#define SYSTEMD_PATH "/org/freedesktop/systemd1"
#define SERVICE	  SYSTEMD ".Service"
#define UNIT	  SYSTEMD ".Unit"

/* A template cannot be asked about, an instance of it can, and there need not be one. */
#define INSTANCE "usmctl"

/* Reading all units again takes seconds on a machine with thousands. */
#define RELOAD_USEC 120000000ull

struct systemd {
	sd_bus *bus;
};

static int bus_problem(int err, const sd_bus_error *error, const char *what, char **ret_problem)
{
	*ret_problem = say("%s: %s", what,
			   error && error->message ? error->message : strerror(-err));
	return err;
}

int systemd_open(struct systemd **ret, char **ret_problem)
{
	struct systemd *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	r = sd_bus_open_system(&s->bus);
	if (r < 0) {
		free(s);
		return bus_problem(r, NULL, "cannot talk to systemd", ret_problem);
	}
	*ret = s;
	return 0;
}

struct systemd *systemd_close(struct systemd *s)
{
	if (!s)
		return NULL;
	sd_bus_flush_close_unref(s->bus);
	free(s);
	return NULL;
}

/* Where a property is missing, systemd is too old to have the setting. */
static int get(struct systemd *s, const char *path, const char *name, const char *type,
	       sd_bus_message **ret)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	int r = sd_bus_get_property(s->bus, SYSTEMD, path, SERVICE, name, &error, ret, type);

	if (r < 0 && sd_bus_error_has_name(&error, SD_BUS_ERROR_UNKNOWN_PROPERTY))
		return 0;
	return r < 0 ? r : 1;
}

static int get_strings(struct systemd *s, const char *path, const char *name, char ***ret)
{
	sd_bus_message *m = NULL;
	int r = get(s, path, name, "as", &m);

	if (r > 0)
		r = sd_bus_message_read_strv(m, ret);
	sd_bus_message_unref(m);
	return r;
}

/* NULL if it is empty. */
static int get_string(struct systemd *s, const char *path, const char *name, char **ret)
{
	sd_bus_message *m = NULL;
	const char *text = "";
	int r = get(s, path, name, "s", &m);

	if (r > 0)
		r = sd_bus_message_read_basic(m, 's', &text);
	if (r >= 0 && text[0] && !*ret) {
		*ret = strdup(text);
		if (!*ret)
			r = -ENOMEM;
	}
	sd_bus_message_unref(m);
	return r;
}

static int get_bool(struct systemd *s, const char *path, const char *name, bool *ret)
{
	sd_bus_message *m = NULL;
	int value = 0, r = get(s, path, name, "b", &m);

	if (r > 0)
		r = sd_bus_message_read_basic(m, 'b', &value);
	*ret = value;
	sd_bus_message_unref(m);
	return r;
}

static int get_filter(struct systemd *s, const char *path, const char *name, struct unit_filter *ret)
{
	sd_bus_message *m = NULL;
	int is_allow = 0, r = get(s, path, name, "(bas)", &m);

	if (r > 0)
		r = sd_bus_message_enter_container(m, 'r', "bas");
	if (r > 0)
		r = sd_bus_message_read_basic(m, 'b', &is_allow);
	if (r > 0)
		r = sd_bus_message_read_strv(m, &ret->names);
	ret->is_allow = is_allow;
	sd_bus_message_unref(m);
	return r;
}

static int append(char ***list, const char *word)
{
	size_t n = 0;
	char **longer;

	while (*list && (*list)[n])
		n++;
	longer = reallocarray(*list, n + 2, sizeof(*longer));
	if (!longer)
		return -ENOMEM;
	*list = longer;
	longer[n + 1] = NULL;
	longer[n] = strdup(word);
	return longer[n] ? 0 : -ENOMEM;
}

/* The first members of an array of structures; type: of one of these, all strings or booleans. */
static int get_firsts(struct systemd *s, const char *path, const char *name, const char *type,
		      char ***ret)
{
	_cleanup_free_ char *array = say("a(%s)", type), *item = say("(%s)", type);
	sd_bus_message *m = NULL;
	int r = array && item ? get(s, path, name, array, &m) : -ENOMEM;

	if (r > 0)
		r = sd_bus_message_enter_container(m, 'a', item);
	while (r > 0) {
		const char *text;

		r = sd_bus_message_enter_container(m, 'r', type);
		if (r <= 0)
			break;
		r = sd_bus_message_read_basic(m, 's', &text);
		if (r > 0)
			r = append(ret, text);
		if (r >= 0)
			r = sd_bus_message_skip(m, type + 1);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
		if (r >= 0)
			r = 1;
	}
	sd_bus_message_unref(m);
	return r;
}

static int get_preload(struct systemd *s, const char *path, struct unit_settings *ret)
{
	char **environment = NULL;
	int r = get_strings(s, path, "Environment", &environment);

	for (char **e = environment; r >= 0 && e && *e; e++) {
		if (strncmp(*e, "LD_PRELOAD=", 11) == 0) {
			free(ret->preload);
			ret->preload = strdup(*e + 11);
			r = ret->preload ? 0 : -ENOMEM;
		}
		free(*e);
	}
	free(environment);
	return r;
}

static int get_program(struct systemd *s, const char *path, struct unit_settings *ret)
{
	char **programs = NULL;
	int r = get_firsts(s, path, "ExecStart", "sasbttttuii", &programs);

	for (char **p = programs; p && *p; p++) {
		/* Of several (Type=oneshot) each gets the library; one stands for all. */
		if (!ret->program)
			ret->program = *p;
		else
			free(*p);
	}
	free(programs);
	return r;
}

static int get_settings(struct systemd *s, const char *path, struct unit_settings *ret)
{
	const struct {
		const char *name;
		char ***list;
	} lists[] = {
		{ "UnsetEnvironment", &ret->unset }, { "InaccessiblePaths", &ret->inaccessible },
		{ "NoExecPaths", &ret->no_exec }, { "ExecPaths", &ret->exec },
	};
	int r;

	for (unsigned i = 0; i < ARRAY_SIZE(lists); i++) {
		r = get_strings(s, path, lists[i].name, lists[i].list);
		if (r < 0)
			return r;
	}
	if ((r = get_preload(s, path, ret)) < 0 || (r = get_program(s, path, ret)) < 0 ||
	    (r = get_string(s, path, "RootDirectory", &ret->root)) < 0 ||
	    (r = get_string(s, path, "RootImage", &ret->root)) < 0 ||
	    (r = get_string(s, path, "ProtectHome", &ret->protect_home)) < 0 ||
	    (r = get_bool(s, path, "PrivateTmp", &ret->private_tmp)) < 0 ||
	    (r = get_firsts(s, path, "EnvironmentFiles", "sb", &ret->env_files)) < 0 ||
	    (r = get_firsts(s, path, "TemporaryFileSystem", "ss", &ret->tmpfs)) < 0 ||
	    (r = get_filter(s, path, "SystemCallFilter", &ret->calls)) < 0 ||
	    (r = get_filter(s, path, "RestrictAddressFamilies", &ret->families)) < 0)
		return r;
	return 0;
}

/* An instance of a template is named; everything else is its own name. */
static char *unit_to_ask(const char *unit)
{
	const char *at = strchr(unit, '@');

	if (!at || at[1] != '.')
		return strdup(unit);
	return say("%.*s" INSTANCE "%s", (int)(at + 1 - unit), unit, at + 1);
}

/* Is the unit there?  *ret_id is its name if it was called by an alias. */
static int check_loaded(struct systemd *s, const char *path, const char *unit, char **ret_id,
			char **ret_problem)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_free_ char *state = NULL;
	int r = sd_bus_get_property_string(s->bus, SYSTEMD, path, UNIT, "LoadState", &error, &state);

	if (r >= 0)
		r = sd_bus_get_property_string(s->bus, SYSTEMD, path, UNIT, "Id", &error, ret_id);
	if (r < 0)
		return bus_problem(r, &error, "cannot ask systemd for the unit", ret_problem);
	if (strcmp(state, "loaded") == 0)
		return 0;
	*ret_problem = strcmp(state, "not-found") == 0 ? say("there is no unit %s", unit) :
							 say("the unit %s is %s", unit, state);
	return -ENOENT;
}

int systemd_unit(struct systemd *s, const char *unit, struct unit_settings *ret, char **ret_problem)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_(unit_settings_done) struct unit_settings settings = {};
	_cleanup_free_ char *asked = unit_to_ask(unit);
	sd_bus_message *m = NULL;
	const char *path;
	int r;

	if (!asked)
		return -ENOMEM;
	r = sd_bus_call_method(s->bus, SYSTEMD, SYSTEMD_PATH, SYSTEMD ".Manager", "LoadUnit", &error,
			       &m, "s", asked);
	if (r >= 0)
		r = sd_bus_message_read_basic(m, 'o', &path);
	if (r < 0) {
		sd_bus_message_unref(m);
		return bus_problem(r, &error, "cannot ask systemd for the unit", ret_problem);
	}
	r = check_loaded(s, path, unit, &settings.id, ret_problem);
	if (r >= 0) {
		r = get_settings(s, path, &settings);
		if (r < 0)
			bus_problem(r, NULL, "cannot ask systemd for the unit's settings", ret_problem);
	}
	sd_bus_message_unref(m);
	if (r < 0)
		return r;
	/* The name of the template again, also of one that an alias leads to. */
	if (strcmp(asked, unit) != 0) {
		char template[USM_UNIT_MAX + 1];

		if (usm_unit_template(settings.id, template)) {
			free(settings.id);
			settings.id = strdup(template);
		}
		if (!settings.id)
			return -ENOMEM;
	}
	*ret = settings;
	settings = (struct unit_settings){};
	return 0;
}

int systemd_reload(struct systemd *s, char **ret_problem)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *m = NULL;
	int r = sd_bus_message_new_method_call(s->bus, &m, SYSTEMD, SYSTEMD_PATH, SYSTEMD ".Manager",
					       "Reload");

	if (r >= 0)
		r = sd_bus_call(s->bus, m, RELOAD_USEC, &error, NULL);
	sd_bus_message_unref(m);
	return r < 0 ? bus_problem(r, &error, "systemd does not read its units again", ret_problem) : 0;
}
