// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"
)

// build is what version prints.
type build struct {
	Version string            `json:"version"`
	Go      string            `json:"go"`
	OS      string            `json:"os"`
	Arch    string            `json:"arch"`
	Modules map[string]string `json:"modules"`
}

// notableModules are the dependencies whose versions matter to security.
func notableModules() []string {
	return []string{
		"github.com/smallstep/certificates", "go.step.sm/crypto", "github.com/go-jose/go-jose/v4", "github.com/gorilla/mux", "modernc.org/sqlite",
	}
}

func readBuild() build {
	b := build{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Modules: map[string]string{}}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, m := range info.Deps {
		if slices.Contains(notableModules(), m.Path) {
			b.Modules[m.Path] = m.Version
		}
	}
	return b
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of the program and of what it is built from", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			return c.print(b, func(w io.Writer) {
				pairs := []string{"certbound", b.Version, "go", b.Go, "platform", b.OS + "/" + b.Arch}
				for _, path := range notableModules() {
					pairs = append(pairs, path, b.Modules[path])
				}
				fields(w, pairs...)
			})
		},
	}
}
