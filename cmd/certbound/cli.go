// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// cli is one run of the program: its streams, its environment and the flags that every verb has.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) (string, bool)

	json    bool
	output  string
	profile string
	socket  string

	remedy string // what to do when what was asked for is done but its output is lost; empty: ask again
}

// output is standard output. It remembers that it could not be written, because what prints does not tell: tables, help,
// and an encoder whose error looks like any other.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	var n int
	n, o.err = o.to.Write(b)
	return n, o.err
}

// run is the program without its process: it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) (string, bool)) int {
	// The format is needed to report that the command line is wrong, so it is looked for before the line is parsed.
	out := &output{to: stdout}
	c := &cli{stdin: stdin, stdout: out, stderr: stderr, env: env, json: wantsJSON(args)}
	root := c.root()
	root.SetArgs(markThumbprints(args))
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if out.err != nil {
		err = c.unwritten(out.err) // whatever else went wrong: nobody saw it
	}
	if err != nil {
		return c.report(err)
	}
	return 0
}

// unwritten says that what was asked for did not reach whoever asked.
func (c *cli) unwritten(err error) error {
	return failf(cmp.Or(c.remedy, "make room where the output goes, or send it elsewhere, and run it again"),
		"the output could not be written: %v", err)
}

// wantsJSON finds -o json in any spelling of the flag; the last one counts.
func wantsJSON(args []string) bool {
	format := ""
	for i, arg := range args {
		if arg == "--" {
			break
		}
		for _, name := range []string{"--output", "-o"} {
			value, ok := strings.CutPrefix(arg, name)
			switch {
			case ok && value == "" && i+1 < len(args):
				format = args[i+1]
			case ok && (name == "-o" || strings.HasPrefix(value, "=")):
				format = strings.TrimPrefix(value, "=")
			}
		}
	}
	return format == "json"
}

const rootHelp = `Tokens bound to certificates: issue them, hold them, check them.

What was asked for goes to standard output, explanations and errors to standard error. With -o json answers and errors
are JSON, and nothing is explained.

Exit codes, of every verb:

  0  it was done, or waits for a second operator; of inspect and whoami, also that the answer is yes
  1  it was refused or failed, or its output could not be written
  2  the command line is wrong: nothing was done and nothing sent. That is so for flags and arguments that do not fit
     together and for values that no service could take: an id that is none, --usage, --ip, --reason, --revocation,
     --token-ttl, and the flags of serve. Names, URIs and scopes are judged by the service, and codes, tokens and files
     are no part of the command line: what is wrong with them is 1.`

func (c *cli) root() *cobra.Command {
	root := group("certbound", "Tokens bound to certificates: issue them, hold them, check them",
		c.serveCommand(), c.clientCommand(), c.resourceCommand(), c.trustCommand(), c.approvalCommand(), c.enrollCommand(),
		c.profileCommand(), c.renewCommand(), c.tokenCommand(), c.inspectCommand(), c.whoamiCommand(), c.certCommand(),
		c.statusCommand(), c.keysCommand(), c.auditCommand(), c.storeCommand(), c.ticketsCommand(), c.leasesCommand(), c.configCommand(), c.versionCommand())
	root.Long = rootHelp
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef(cmd.CommandPath()+" --help lists its flags", "%v", err)
	})
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "text", "text or json")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if c.output != "text" && c.output != "json" {
			return usagef("use -o text or -o json", "unknown output format %q", c.output)
		}
		c.json = c.output == "json"
		return nil
	}
	return root
}

// group is a command that only holds verbs.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef(cmd.CommandPath()+" --help lists the verbs", "%s needs a verb", cmd.CommandPath())
		}
		hint := cmd.CommandPath() + " --help lists the verbs"
		if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
			hint = "did you mean: " + cmd.CommandPath() + " " + similar[0]
		}
		return usagef(hint, "unknown verb %q of %s", args[0], cmd.CommandPath())
	}}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(verbs...)
	return cmd
}

// arguments demands between least and most positional arguments; the hint is the verb's usage line.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("usage: "+cmd.UseLine(), "%s needs an argument", cmd.CommandPath())
		case len(args) > most && most == 0:
			return usagef("usage: "+cmd.UseLine(), "%s takes no argument, but got %q", cmd.CommandPath(), args[0])
		case len(args) > most:
			return usagef("usage: "+cmd.UseLine(), "%s got one argument too many: %q", cmd.CommandPath(), args[most])
		}
		return nil
	}
}

// profileFlag gives a verb the flag that names its profile.
func (c *cli) profileFlag(cmd *cobra.Command, fallback string) {
	cmd.Flags().StringVar(&c.profile, "profile", "", "profile folder (else CERTBOUND_PROFILE, else "+fallback+")")
}

// print writes v as JSON, or has text write it for humans.
func (c *cli) print(v any, text func(w io.Writer)) error {
	if !c.json {
		text(c.stdout)
		return nil
	}
	enc := json.NewEncoder(c.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// note explains on standard error what happened; machines are told nothing beside their JSON.
func (c *cli) note(format string, args ...any) {
	if !c.json {
		fmt.Fprintf(c.stderr, format+"\n", args...)
	}
}

// table writes rows in aligned columns under a heading.
func table(w io.Writer, heading string, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(heading, " ", "\t"))
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	_ = tw.Flush() // output remembers what could not be written
}

// fields writes name and value pairs in two columns; pairs without a value are left out.
func fields(w io.Writer, pairs ...string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(tw, "%s\t%s\n", pairs[i], pairs[i+1])
		}
	}
	_ = tw.Flush()
}

// line is text of one line.
func line(s string) func(io.Writer) {
	return func(w io.Writer) { fmt.Fprintln(w, s) }
}

// stamp is a time as people read it, in UTC.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
