// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
)

const lineWidth = 108

// A screen prints the story: plain text, and colour only where a person looks on.
type screen struct {
	file         *os.File
	good, bad    string // before the verdict
	dim, neutral string
	step         int
}

func newScreen(f *os.File) *screen {
	s := &screen{file: f}
	info, err := f.Stat()
	if err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" {
		s.good, s.bad, s.dim, s.neutral = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"
	}
	return s
}

func (s *screen) heading(text string) {
	s.step++
	fmt.Fprintf(s.file, "\n%2d. %s\n", s.step, text)
}

// act shows what is done: a command line or a request.
func (s *screen) act(format string, args ...any) {
	fmt.Fprintf(s.file, "    $ %s\n", fmt.Sprintf(format, args...))
}

// say shows what came back, cut to the width of the screen.
func (s *screen) say(text string) {
	for line := range strings.Lines(strings.TrimSpace(text)) {
		line = strings.TrimRight(line, "\r\n")
		if runes := []rune(line); len(runes) > lineWidth {
			line = string(runes[:lineWidth-1]) + "…"
		}
		fmt.Fprintf(s.file, "      %s%s%s\n", s.dim, line, s.neutral)
	}
}

func (s *screen) ok(format string, args ...any) {
	fmt.Fprintf(s.file, "    %sok%s  %s\n", s.good, s.neutral, fmt.Sprintf(format, args...))
}

func (s *screen) failed(err error) {
	fmt.Fprintf(s.file, "    %sFAILED%s  %s\n", s.bad, s.neutral, err)
}
