// SPDX-License-Identifier: Apache-2.0
//
// chatload.c: the load generator's main: options, files, the run, the report. Exit status 0 when
// every request was answered or cancelled on purpose, 1 when one was not, 2 when it could not run.
#include <stdio.h>

#include "tests/load/run.h"

int main(int argc, char **argv)
{
    struct error err = {0};
    struct load_options opt;
    struct load_scripts scripts = {0};
    struct load_report *report = NULL;
    struct load_totals totals = {0};
    bool clean = false;

    int rc = load_options_parse(&opt, argc, argv, &err);
    if (rc == CFG_PARSE_EXIT) return 0;
    if (!rc && curl_global_init(CURL_GLOBAL_DEFAULT))
        rc = cfg_fail(&err, CFG_EINTERNAL, "libcurl could not start");
    if (!rc && opt.file) rc = load_scripts_read(&scripts, opt.file, &err);
    if (!rc) rc = load_report_new(&report, &opt, &err);
    if (!rc) rc = load_run(&opt, &scripts, report, &totals, &err);
    if (!rc) {
        clean = load_report_errors(report) == 0;
        rc = load_report_finish(report, &totals, &err);
    }
    load_report_free(report);
    load_scripts_free(&scripts);
    curl_global_cleanup();
    if (rc) fprintf(stderr, "chatload: %s\n", err.message);
    return rc ? 2 : clean ? 0 : 1;
}
