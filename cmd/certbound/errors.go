// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/certbound/certbound/cmd/internal/admin"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/cmd/internal/server"
	"github.com/certbound/certbound/cmd/internal/store"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// failure is an error as the user sees it: what was wrong, and what to do about it.
type failure struct {
	exit                    int
	code, description, hint string
	silent                  bool // the answer said it all
}

func (f *failure) Error() string { return f.description }

// usagef is a mistake on the command line.
func usagef(hint, format string, args ...any) error {
	return &failure{exit: exitUsage, code: "usage", description: fmt.Sprintf(format, args...), hint: hint}
}

// failf is a refusal or a failure.
func failf(hint, format string, args ...any) error {
	return &failure{exit: exitFailed, code: "failed", description: fmt.Sprintf(format, args...), hint: hint}
}

// report writes an error and returns the exit code.
func (c *cli) report(err error) int {
	f := explain(err)
	if f.silent {
		return f.exit
	}
	if c.json {
		body := admin.ErrorBody{Code: f.code, Description: f.description, Hint: f.hint}
		enc := json.NewEncoder(c.stderr)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(body) // standard error is the last resort
		return f.exit
	}
	fmt.Fprintf(c.stderr, "error: %s\nhint: %s\n", f.description, f.hint)
	return f.exit
}

// explain turns any error into what the user sees, in one line each.
func explain(err error) *failure {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = translate(err)
	}
	f.description, f.hint = oneLine(f.description), oneLine(cmp.Or(f.hint, "certbound --help lists the verbs"))
	return f
}

// translate gives a hint to the errors of the packages below.
func translate(err error) *failure {
	f := &failure{exit: exitFailed, code: "failed", description: err.Error()}
	if api, ok := errors.AsType[*profile.APIError](err); ok {
		f.code, f.hint = cmp.Or(api.Code, f.code), cmp.Or(api.Hint, hintFor(api))
		f.description = api.Error()
		return f
	}
	if lapsed, ok := errors.AsType[*profile.LapsedError](err); ok {
		f.code, f.description, f.hint = "lapsed_profile", lapsed.Error(), lapsed.Hint()
		return f
	}
	if told, ok := errors.AsType[*profile.Error](err); ok {
		f.hint = told.Hint
	}
	if start, ok := errors.AsType[*server.StartError](err); ok {
		f.hint = start.Hint
	}
	if kek, ok := errors.AsType[*store.KEKError](err); ok {
		f.hint = cmp.Or(missingKEK(kek), kek.Hint)
	}
	if folder, ok := errors.AsType[*store.FolderError](err); ok {
		f.hint = cmp.Or(f.hint, folderHint(folder))
	}
	if place, ok := errors.AsType[*store.PlaceError](err); ok {
		f.hint = cmp.Or(f.hint, place.Hint())
	}
	if condition, ok := errors.AsType[*store.ConditionError](err); ok {
		f.code, f.hint = "not_servable", cmp.Or(f.hint, condition.Hint())
	}
	f.hint = cmp.Or(f.hint, causeHint(err))
	return f
}

// folderHint says what to do about a folder that a file was to be made in.
func folderHint(folder *store.FolderError) string {
	if !folder.Missing {
		return "name a file in a folder"
	}
	return "correct the path, mount the disk that it lies on, or make the folder first: mkdir -p " + profile.ShellWord(folder.Dir)
}

// missingKEK says how to make the file of a key-encryption key that was configured and is not there; empty for any other
// trouble with one.
func missingKEK(kek *store.KEKError) string {
	missing, ok := errors.AsType[*fs.PathError](kek)
	if !ok || !errors.Is(missing, fs.ErrNotExist) {
		return ""
	}
	return "put the file back that belongs to this database, or for a new service make one: (umask 077; head -c 32 /dev/urandom | base64 >" +
		profile.ShellWord(missing.Path) + ")"
}

// causeHint knows what to do about causes that can come from anywhere.
func causeHint(err error) string {
	switch {
	case errors.Is(err, store.ErrLocked):
		return "stop the other server, or give this one its own folder with --data"
	case errors.Is(err, store.ErrWrongKEK):
		return "put back the key-encryption key that belongs to this database"
	case errors.Is(err, store.ErrNewerSchema):
		return "run the newer program, or restore the backup made before the upgrade"
	case errors.Is(err, store.ErrOlderSchema):
		return "bring it up to date first: certbound store migrate"
	case errors.Is(err, store.ErrNotEmpty):
		return "name an empty database, or a file that is not there yet"
	case errors.Is(err, store.ErrDamaged):
		return "put back the file from a backup; what is left of it was not touched"
	case errors.Is(err, store.ErrDraft):
		return "remove it, and make the copy or the backup again: this one is not whole"
	case errors.Is(err, store.ErrForeign):
		return "name another folder with --data"
	case errors.Is(err, store.ErrUnavailable):
		return "look whether the database's server runs and can be reached, then try again"
	case errors.Is(err, syscall.EADDRINUSE):
		return "choose another address with --public, --mtls or --debug, or stop what listens there"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "start the service with certbound serve, or use the profile of a running one"
	case errors.Is(err, context.DeadlineExceeded):
		return "look whether the service is running and can be reached, then try again"
	case errors.Is(err, context.Canceled):
		return "it was interrupted: run it again"
	case errors.Is(err, syscall.EACCES):
		return "run it as the user that owns the file"
	}
	return ""
}

// hintFor helps where a service gave no hint of its own.
func hintFor(api *profile.APIError) string {
	switch {
	case api.Code == "invalid_client" || api.Code == "invalid_token":
		return "the client is disabled or removed, or its certificate revoked: ask an operator (certbound client invite ID), then certbound enroll -"
	case api.Code == "insufficient_scope" && api.Scope != "":
		return "an operator with certbound:grant may give the scope " + api.Scope
	case api.Code == "insufficient_scope" || api.Code == "invalid_target" || api.Code == "invalid_scope":
		return "look at what the client may ask for: certbound client show ID"
	case api.Status >= 500:
		return "try again; the service's log names the cause"
	}
	return "look at the service's log"
}

// oneLine joins the lines of errors that have several.
func oneLine(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
