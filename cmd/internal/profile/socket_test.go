// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "admin.sock")
	var asked string
	serveSocket(t, path, func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
		if r.URL.Path == "/admin/v1/clients" {
			answerJSON(w, http.StatusNotFound, map[string]any{"error": "invalid_request", "hint": "not here"})
			return
		}
		if r.URL.Path == "/admin/v1/later" {
			answerJSON(w, http.StatusAccepted, map[string]any{"id": "abc"})
			return
		}
		answerJSON(w, http.StatusOK, map[string]any{"done": "yes"})
	})
	s := NewSocket(path)
	defer s.Close()
	var out struct {
		Done string `json:"done"`
	}
	if err := s.Do(t.Context(), http.MethodPost, "/tickets/reset", nil, &out); err != nil || out.Done != "yes" {
		t.Errorf("%+v, %v", out, err)
	}
	if asked != "POST /admin/v1/tickets/reset " {
		t.Errorf("asked %q", asked)
	}
	err := s.Do(t.Context(), http.MethodGet, "/clients", nil, nil)
	if refused, ok := errors.AsType[*APIError](err); !ok || refused.Hint != "not here" {
		t.Errorf("error %#v", err)
	}
	if _, ok := errors.AsType[*AcceptedError](s.Do(t.Context(), http.MethodPost, "/later", nil, nil)); !ok {
		t.Error("what waits is taken for something else")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Do(ended, http.MethodGet, "/status", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A socket that does not answer is named, with what to do.
func TestSocketErrors(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	mute := filepath.Join(dir, "mute.sock")
	serveSocket(t, mute, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for path, want := range map[string]string{
		filepath.Join(dir, "none.sock"): "DATA/admin.sock",
		dead:                            "DATA/admin.sock",
		filepath.Join(dir, strings.Repeat("x", 200)): "107 bytes",
		mute: "look whether the service runs",
		filepath.Join(dir, "mute.sock", "not-a-folder"): "look whether the service runs",
	} {
		err := NewSocket(path).Do(t.Context(), http.MethodGet, "/status", nil, nil)
		if message, hint := wantHint(t, err); !strings.Contains(message, path) || !strings.Contains(hint, want) {
			t.Errorf("%s: %q; %q", path, message, hint)
		}
	}
}

// shortDir is a folder whose path leaves room for a socket's name.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cb")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func serveSocket(tb testing.TB, path string, h http.HandlerFunc) {
	tb.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	tb.Cleanup(func() { _ = srv.Close() })
}
