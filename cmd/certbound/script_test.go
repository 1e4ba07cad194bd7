// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/certbound/certbound/cmd/internal/leaktest"
	"github.com/certbound/certbound/cmd/internal/profile"
	"github.com/certbound/certbound/mtls"
	"github.com/certbound/certbound/mtls/mtlstest"
	"github.com/certbound/certbound/scripts/postgres"
	"github.com/certbound/certbound/tokens"
	"github.com/certbound/certbound/tokens/client"
	"github.com/certbound/certbound/tokens/resource"
)

// scriptTimeout bounds every wait of a script.
const scriptTimeout = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"certbound": main, "mtlsget": mtlsget, "ledger": ledger})
}

// TestScripts tells the stories of testdata/script with the real program. Besides certbound and testscript's own commands
// a script has
//
//	serve [FLAG…]        start certbound serve on free ports and wait until it is ready; sets $ISSUER, $MTLS and $PID; @FILE
//	                     stands for what is in the file
//	start NAME PROG …    start any program in the background and wait for its line "ready KEY=VALUE …"; sets $NAME_KEY
//	end NAME             end it by SIGTERM and demand that it ends cleanly; serve is called server
//	crash NAME           end it by SIGKILL
//	await FILE           wait until a file exists
//	eventually [!] …     run a program again and again until it succeeds, or with ! until it fails
//	mtlsget, ledger      an HTTP client and a resource server, below
//	ca, issue, …         what foreign CAs do: foreignCommands
//
// When a script is over, nothing secret may be in what its services wrote: noLeaks.
//
// What a background program writes lies in $WORK/NAME.stdout and $WORK/NAME.stderr; whatever still runs at the end is
// killed.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, storyParams(t, "testdata/script", nil))
}

// TestPostgresScripts tells those of testdata/postgres, which have empty databases: $DB1, $DB2 and $DB3 are their URLs.
//
//	snapshot DB1 DB3     sets $DB3 to the URL of a copy of the database $DB1, which nobody uses at that moment
//	foreign DB1          puts another application's table into the database $DB1
func TestPostgresScripts(t *testing.T) {
	t.Parallel()
	server := postgres.ForTest(t)
	p := storyParams(t, "testdata/postgres", func(env *testscript.Env) {
		for _, name := range []string{"DB1", "DB2", "DB3"} {
			env.Setenv(name, server.Database(t))
		}
	})
	p.Cmds["snapshot"] = func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 2 {
			ts.Fatalf("usage: snapshot FROM TO")
		}
		from, err := url.Parse(ts.Getenv(args[0]))
		ts.Check(err)
		ts.Setenv(args[1], server.DatabaseFrom(t, strings.TrimPrefix(from.Path, "/")))
	}
	p.Cmds["foreign"] = func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 1 {
			ts.Fatalf("usage: foreign DB")
		}
		name, err := url.Parse(ts.Getenv(args[0]))
		ts.Check(err)
		_, err = server.Query(context.Background(), strings.TrimPrefix(name.Path, "/"), "CREATE TABLE orders (id INTEGER)")
		ts.Check(err)
	}
	testscript.Run(t, p)
}

// storyParams are what all stories have in common. more, if not nil, prepares a story further.
func storyParams(t *testing.T, dir string, more func(*testscript.Env)) testscript.Params {
	commands := foreignCommands(t)
	maps.Copy(commands, backgroundCommands())
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			running := map[string]*background{}
			env.Values["running"] = running
			env.Values["authorities"] = map[string]*mtlstest.CA{}
			env.Defer(func() {
				for _, b := range running {
					b.kill()
				}
				noLeaks(env.T(), env.WorkDir)
			})
			if more != nil {
				more(env)
			}
			return nil
		},
		Cmds: commands,
	}
}

// noLeaks demands that what services wrote of their own accord, journals, logs and what they tell about themselves, holds
// no token, code or key that a script left in a file, and none that looks like one.
func noLeaks(t testscript.T, work string) {
	told := func(name string) bool {
		return filepath.Base(filepath.Dir(name)) == "audit" || filepath.Ext(name) == ".stderr" || filepath.Base(name) == "serve.json"
	}
	var secrets leaktest.Secrets
	if err := secrets.CollectFolder(work, told); err != nil {
		t.Fatal(err)
	}
	_, found, err := secrets.FindInFolder(work, told)
	if err != nil || len(found) > 0 {
		t.Fatal(err, found)
	}
}

// backgroundCommands are the commands that start and end programs.
func backgroundCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"serve": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("a start that fails is: ! exec certbound serve")
			}
			for i, arg := range args {
				if file, is := strings.CutPrefix(arg, "@"); is {
					args[i] = strings.TrimSpace(ts.ReadFile(file))
				}
			}
			args = append([]string{"serve", "--public", "127.0.0.1:0", "--mtls", "127.0.0.1:0", "--debug", "127.0.0.1:0"}, args...)
			b := startBackground(ts, "server", "certbound", args)
			ts.Setenv("ISSUER", b.ready["issuer"])
			ts.Setenv("MTLS", b.ready["mtls"])
			ts.Setenv("PID", fmt.Sprint(b.cmd.Process.Pid))
		},
		"start": func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < 2 {
				ts.Fatalf("usage: start NAME PROG ARG…")
			}
			for key, value := range startBackground(ts, args[0], args[1], args[2:]).ready {
				ts.Setenv(args[0]+"_"+key, value)
			}
		},
		"end": func(ts *testscript.TestScript, neg bool, args []string) {
			endBackground(ts, neg, args, syscall.SIGTERM)
		},
		"crash": func(ts *testscript.TestScript, neg bool, args []string) {
			endBackground(ts, neg, args, syscall.SIGKILL)
		},
		"await":      await,
		"eventually": eventually,
	}
}

// background is a program that a script has started.
type background struct {
	cmd   *exec.Cmd
	ready map[string]string
	ended chan error // gets the result of Wait once
}

func (b *background) kill() {
	_ = b.cmd.Process.Kill() // it may have ended already
	b.ended <- <-b.ended
}

// startBackground runs one of this binary's programs and waits until it says that it is ready.
func startBackground(ts *testscript.TestScript, name, program string, args []string) *background {
	self, err := os.Executable()
	ts.Check(err)
	out, err := os.Create(ts.MkAbs(filepath.Join(ts.Getenv("WORK"), name+".stdout")))
	ts.Check(err)
	defer out.Close()
	errs, err := os.Create(ts.MkAbs(filepath.Join(ts.Getenv("WORK"), name+".stderr")))
	ts.Check(err)
	defer errs.Close()
	cmd := exec.Command(self, args...)
	cmd.Args[0] = program // by which the binary knows what it is
	cmd.Dir, cmd.Env, cmd.Stderr = ts.MkAbs("."), environment(ts), errs
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	b := &background{cmd: cmd, ready: map[string]string{}, ended: make(chan error, 1)}
	ts.Value("running").(map[string]*background)[name] = b

	lines := make(chan string, 1)
	go func() {
		copied := io.TeeReader(stdout, out)
		line, _ := bufio.NewReader(copied).ReadString('\n')
		lines <- line
		_, _ = io.Copy(io.Discard, copied)
		b.ended <- cmd.Wait()
	}()
	select {
	case line := <-lines:
		text, ok := strings.CutPrefix(line, "ready ")
		if !ok {
			said, _ := os.ReadFile(errs.Name())
			ts.Fatalf("%s did not get ready: %q, %s", name, line, said)
		}
		for _, field := range strings.Fields(text) {
			key, value, _ := strings.Cut(field, "=")
			b.ready[key] = value
		}
	case <-time.After(scriptTimeout):
		ts.Fatalf("%s is not ready after %s", name, scriptTimeout)
	}
	return b
}

// environment is the script's own, which testscript keeps to itself: the variables that the programs look at.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "WORK", "SSL_CERT_FILE", "CERTBOUND_PROFILE", "CERTBOUND_CONFIG", "CERTBOUND_ISSUER",
		"CERTBOUND_CODE_LIFETIME", "CERTBOUND_CERTIFICATE_LIFETIME", "CERTBOUND_SIGNING_ALGORITHM",
	} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func endBackground(ts *testscript.TestScript, neg bool, args []string, signal syscall.Signal) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: end|crash NAME")
	}
	running := ts.Value("running").(map[string]*background)
	b, ok := running[args[0]]
	if !ok {
		ts.Fatalf("%s does not run", args[0])
	}
	ts.Check(b.cmd.Process.Signal(signal))
	select {
	case err := <-b.ended:
		b.ended <- err
		if signal == syscall.SIGTERM && err != nil {
			said, _ := os.ReadFile(filepath.Join(ts.Getenv("WORK"), args[0]+".stderr"))
			ts.Fatalf("%s did not end cleanly: %v: %s", args[0], err, said)
		}
	case <-time.After(scriptTimeout):
		ts.Fatalf("%s still runs after %s", args[0], scriptTimeout)
	}
	delete(running, args[0])
}

// await waits until a file exists.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	name := ts.MkAbs(args[0])
	deadline := time.Now().Add(scriptTimeout)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !exists(name) {
		if time.Now().After(deadline) {
			ts.Fatalf("waited %s for %s", scriptTimeout, args[0])
		}
		<-ticker.C
	}
}

// eventually runs a program until it ends as it should; the last run is the one whose output counts.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	fails := len(args) > 0 && args[0] == "!"
	if fails {
		args = args[1:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually [!] PROG ARG…")
	}
	deadline := time.Now().Add(scriptTimeout)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for (ts.Exec(args[0], args[1:]...) != nil) != fails {
		if time.Now().After(deadline) {
			ts.Fatalf("waited %s for %q", scriptTimeout, args)
		}
		<-ticker.C
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// fail ends one of the programs below.
func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// mtlsget is a program of the scripts:
//
//	mtlsget [-profile DIR] [-roots DIR] [-token-file FILE] [-data FORM] [-again FILE] URL
//
// It sends a request with the profile's certificate, without -profile none, trusting the profile's roots or those of the
// profile -roots, and prints status, protocol, challenge and body. With -again it creates FILE.waiting, waits until FILE
// exists, and sends the request once more over the same connection, which it demands to be still open.
func mtlsget() {
	dir := flag.String("profile", "", "")
	roots := flag.String("roots", "", "")
	tokenFile := flag.String("token-file", "", "")
	data := flag.String("data", "", "")
	again := flag.String("again", "", "")
	flag.Parse()
	trusted, err := profile.Open(cmp.Or(*dir, *roots))
	fail(err)
	pair := trusted.KeyPair()
	if *dir == "" {
		pair = nil
	}
	dials := 0
	transport := &http.Transport{
		TLSClientConfig: mtls.ClientConfig(pair, trusted.Roots()), ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	hc := &http.Client{Transport: transport, Timeout: scriptTimeout}
	request := func() {
		method, body := http.MethodGet, io.Reader(nil)
		if *data != "" {
			method, body = http.MethodPost, strings.NewReader(*data)
		}
		r, err := http.NewRequest(method, flag.Arg(0), body)
		fail(err)
		if *data != "" {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if *tokenFile != "" {
			token, err := os.ReadFile(*tokenFile)
			fail(err)
			r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		}
		resp, err := hc.Do(r)
		fail(err)
		defer resp.Body.Close()
		fmt.Println(resp.StatusCode, resp.Proto)
		fmt.Println("WWW-Authenticate:", resp.Header.Get("WWW-Authenticate"))
		_, err = io.Copy(os.Stdout, resp.Body)
		fail(err)
		fmt.Println()
	}
	request()
	if *again == "" {
		return
	}
	fail(os.WriteFile(*again+".waiting", nil, 0o600))
	for deadline := time.Now().Add(scriptTimeout); ; time.Sleep(20 * time.Millisecond) {
		if exists(*again) {
			break
		}
		if time.Now().After(deadline) {
			fail(errors.New("nobody said when to go on"))
		}
	}
	fmt.Println("again")
	request()
	if dials != 1 {
		fail(fmt.Errorf("%d connections", dials))
	}
}

// ledger is a program of the scripts: a resource server for the audience -audience and the scope ledger:read, with the
// profile's certificate as its own.
func ledger() {
	dir := flag.String("profile", "", "")
	audience := flag.String("audience", "", "")
	flag.Parse()
	p, err := profile.Open(*dir)
	fail(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: mtls.ClientConfig(nil, p.Roots())}, Timeout: scriptTimeout}
	metadata, err := client.Discover(ctx, hc, p.Issuer())
	fail(err)
	keys, err := tokens.NewKeySet(tokens.KeySetConfig{URL: metadata.JWKSURI, Client: hc})
	fail(err)
	verifier, err := tokens.NewVerifier(tokens.VerifierConfig{Issuer: p.Issuer(), Audience: *audience, Keys: keys})
	fail(err)
	guard, err := resource.New(resource.Config{Verifier: verifier, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	fail(err)
	handler := guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := resource.Claims(r.Context())
		fmt.Fprintf(w, "welcome %s", claims.ClientID)
	}), "ledger:read")
	cfg := mtls.ServerConfig(p.KeyPair(), mtls.ClientCertificatesRequested)
	srv := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	mtls.ConfigureServer(srv, cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	fail(err)
	fmt.Printf("ready url=https://localhost:%s\n", port)
	context.AfterFunc(ctx, func() { _ = srv.Shutdown(context.Background()) })
	if err := srv.Serve(mtls.NewListener(l, cfg)); !errors.Is(err, http.ErrServerClosed) {
		fail(err)
	}
}
