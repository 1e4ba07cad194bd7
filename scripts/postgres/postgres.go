// Copyright The Certbound Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package postgres runs throwaway PostgreSQL clusters from the installed binaries, for tests and for scripts that do harm
// to them: a cluster can be stopped, killed, started again at the same port, copied to a standby and promoted. Everything
// lies in a temporary folder and listens on 127.0.0.1 alone, behind a random password. PostgreSQL refuses to run as root,
// so root's clusters run as the user postgres or nobody.
//
// A cluster is a child of the process that made it and ends with it, however that ends. ForTest shares one among the
// tests of a binary.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// superuser owns every cluster.
	superuser = "postgres"
	// patience bounds each step: making a cluster, starting it, stopping it, a query.
	patience = 30 * time.Second
	// debian is where Debian keeps what its postgresql packages bring, one folder for each major version.
	debian = "/usr/lib/postgresql"
)

// ErrNotFound says that PostgreSQL is not installed here.
var ErrNotFound = errors.New("PostgreSQL's initdb and postgres are neither in PATH nor in " + debian + "/*/bin (Debian: apt-get install postgresql)")

// Find returns the folder of PostgreSQL's binaries: the newest of Debian's, else that of the initdb in PATH.
func Find() (string, error) {
	folders, err := filepath.Glob(debian + "/*/bin")
	if err != nil {
		return "", err
	}
	version := func(folder string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(folder))) // a folder that is no version is older than all
		return n
	}
	slices.SortFunc(folders, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			folders = append(folders, filepath.Dir(path))
		}
	}
	for _, folder := range folders {
		complete := true
		for _, name := range []string{"initdb", "postgres", "psql", "pg_basebackup"} {
			_, err := os.Stat(filepath.Join(folder, name))
			complete = complete && err == nil
		}
		if complete {
			return folder, nil
		}
	}
	return "", ErrNotFound
}

// Config describes a cluster.
type Config struct {
	// Fsync makes it write as one that is to survive a loss of power. Without it, it survives the death of its processes.
	Fsync bool
	// Settings are further ones of PostgreSQL, like "log_statement=all".
	Settings []string
}

// A Cluster is a PostgreSQL server with a data folder of its own. Its methods are safe for concurrent use, except that
// those that start or end it are for one goroutine at a time.
type Cluster struct {
	Server
	config Config
	bin    string
	root   string // the temporary folder: data, the log, the socket
	port   int
	as     *syscall.Credential // nil: as ourselves
	keeper *os.File            // as long as this is open, the folder stays

	mu      sync.Mutex
	running *postmaster // nil while it is stopped
}

// A postmaster is a running server's first process.
type postmaster struct {
	pid    int
	exited chan struct{}
}

// New makes a cluster and starts it. Close ends it.
func New(ctx context.Context, config Config) (*Cluster, error) {
	c, err := newCluster(config)
	if err != nil {
		return nil, err
	}
	password := rand.Text()
	c.Server = newServer(c.bin, c.port, password)
	if err := c.initialise(ctx, password); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.firstStart(ctx, password); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// newCluster makes the folder of a cluster, without data.
func newCluster(config Config) (*Cluster, error) {
	bin, err := Find()
	if err != nil {
		return nil, err
	}
	c := &Cluster{config: config, bin: bin}
	if c.as, err = unprivileged(); err != nil {
		return nil, err
	}
	// The path of a socket is short, and every folder above must be open to the user who runs it: a test's is not.
	if c.root, err = os.MkdirTemp(temporary(c.as != nil), "certbound-pg-"); err != nil {
		return nil, err
	}
	if c.as != nil {
		if err := os.Chown(c.root, int(c.as.Uid), int(c.as.Gid)); err != nil {
			return nil, err
		}
	}
	if c.port, err = freePort(); err != nil {
		return nil, err
	}
	return c, c.keep()
}

// temporary is where folders are made: where the environment says, if others may go there or need not.
func temporary(others bool) string {
	dir := os.TempDir()
	if len(dir) > 40 {
		return "/tmp"
	}
	for at := dir; others; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil || info.Mode()&0o001 == 0 {
			return "/tmp"
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	return dir
}

// unprivileged returns whom to run PostgreSQL as: nil when we are not root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")
}

// freePort returns a port on which nobody listens, below those that Linux gives away unasked, so that nobody else gets it
// while the cluster is down.
func freePort() (int, error) {
	for range 100 {
		port := 20000 + randv2.IntN(12000)
		listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			return port, listener.Close()
		}
	}
	return 0, errors.New("no free port")
}

// keep starts a shell that removes the folder when we are gone, however we ended: it waits for the end of a pipe whose
// other end nobody else has. The server itself hears of our end from the kernel (see launch) and is given time for its own.
func (c *Cluster) keep() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	const script = `read -r _; i=0
while [ -e "$1/data/postmaster.pid" ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done
rm -rf "$1"`
	cmd := exec.Command("/bin/sh", "-c", script, "sh", c.root)
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is not for it
	if err := cmd.Start(); err != nil {
		write.Close()
		return err
	}
	go func() { _ = cmd.Wait() }() // nothing depends on how it ended
	c.keeper = write
	return nil
}

// Close ends the cluster and removes its folder.
func (c *Cluster) Close() error {
	err := c.Stop(Immediate)
	c.release()
	err = errors.Join(err, os.RemoveAll(c.root))
	if c.keeper != nil {
		c.keeper.Close()
	}
	return err
}

// release removes the segment of shared memory that a server leaves behind when it is killed and not started again. Its
// lock file, which stays behind too, has it in the seventh line: key and number.
func (c *Cluster) release() {
	data, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		return
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) < 7 {
		return
	}
	if fields := strings.Fields(lines[6]); len(fields) == 2 {
		_ = exec.Command("ipcrm", "-m", fields[1]).Run() // a segment that stays is small
	}
}

func (c *Cluster) data() string { return filepath.Join(c.root, "data") }

// Log is the file that the server writes its messages to.
func (c *Cluster) Log() string { return filepath.Join(c.root, "log") }

// LastWords returns the end of the log.
func (c *Cluster) LastWords() string {
	data, err := os.ReadFile(c.Log())
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// tool runs one of PostgreSQL's programs to its end, as the user of the cluster.
func (c *Cluster) tool(ctx context.Context, env []string, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...)
	cmd.Dir = c.root
	cmd.Env = append(clean(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as}
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// clean is our environment without what would configure PostgreSQL, and with messages that read the same everywhere.
func clean() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LC_") || strings.HasPrefix(v, "LANG")
	})
	return append(env, "LC_ALL=C.UTF-8")
}

// initialise makes the data folder. Text is ordered as people order it, unless a query says otherwise: who relies on the
// order of bytes without saying so is to find out here.
func (c *Cluster) initialise(ctx context.Context, password string) error {
	secret := filepath.Join(c.root, "password")
	if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
		return err
	}
	if c.as != nil {
		if err := os.Chown(secret, int(c.as.Uid), int(c.as.Gid)); err != nil {
			return err
		}
	}
	args := []string{"--pgdata=" + c.data(), "--username=" + superuser, "--pwfile=" + secret, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"}
	err := c.tool(ctx, nil, "initdb", append(args, "--locale-provider=icu", "--icu-locale=en")...)
	if err != nil {
		// A version before 15, or one built without ICU, knows only the locales of the system.
		if removed := os.RemoveAll(c.data()); removed != nil {
			return removed
		}
		err = c.tool(ctx, nil, "initdb", args...)
	}
	return errors.Join(err, os.Remove(secret))
}

// firstStart starts the cluster, at another port when somebody else has taken the one that was free.
func (c *Cluster) firstStart(ctx context.Context, password string) error {
	for n := 0; ; n++ {
		err := c.Start(ctx)
		if err == nil || n == 3 || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
		if c.port, err = freePort(); err != nil {
			return err
		}
		c.Server = newServer(c.bin, c.port, password)
	}
}

// Start starts a cluster that is stopped and waits until it takes connections. After a kill it waits for the last
// processes of the one before.
func (c *Cluster) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := c.startOnce(ctx)
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "pre-existing shared memory block") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Cluster) startOnce(ctx context.Context) error {
	c.mu.Lock()
	if c.running != nil {
		c.mu.Unlock()
		return errors.New("the cluster is running")
	}
	from := c.logSize()
	p, err := c.launch()
	if err == nil {
		c.running = p
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	for !c.takesConnections(p) {
		select {
		case <-p.exited:
			c.gone(p)
			return fmt.Errorf("postgres ended while it started\n%s", c.logFrom(from))
		case <-ctx.Done():
			c.Kill()
			return fmt.Errorf("postgres was not ready in time: %w\n%s", ctx.Err(), c.logFrom(from))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (c *Cluster) logSize() int64 {
	info, err := os.Stat(c.Log())
	if err != nil {
		return 0
	}
	return info.Size()
}

func (c *Cluster) logFrom(offset int64) string {
	data, err := os.ReadFile(c.Log())
	if err != nil || int64(len(data)) < offset {
		return ""
	}
	data = data[offset:]
	return strings.TrimSpace(string(data[max(0, len(data)-4000):]))
}

// settings are those of the command line, which stand over the files that a standby copies.
func (c *Cluster) settings() []string {
	list := []string{
		"listen_addresses=127.0.0.1", "port=" + strconv.Itoa(c.port), "unix_socket_directories=" + c.root,
		"max_connections=200", "shared_buffers=32MB", "dynamic_shared_memory_type=mmap", "huge_pages=off", "jit=off",
		"wal_level=replica", "max_wal_senders=8", "wal_keep_size=64MB", "max_wal_size=256MB", "hot_standby=on",
		"log_line_prefix=%m [%p] %u@%d ", "log_timezone=UTC", "timezone=UTC", "logging_collector=off",
	}
	if !c.config.Fsync {
		list = append(list, "fsync=off", "full_page_writes=off")
	}
	return append(list, c.config.Settings...)
}

// launch starts the server's first process. The goroutine that starts it waits for it on the same thread: the kernel tells
// a child of the end of the thread that made it, and a thread of ours might otherwise end before we do.
func (c *Cluster) launch() (*postmaster, error) {
	log, err := os.OpenFile(c.Log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	args := []string{"-D", c.data()}
	for _, s := range c.settings() {
		args = append(args, "-c", s)
	}
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.root, clean(), log, log
	// SIGQUIT is an immediate shutdown. A terminal's interrupt is ours to judge.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as, Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	p := &postmaster{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait() // its last words are in the log
		close(p.exited)
	}()
	return p, <-started
}

// takesConnections reads what the server says of itself in its lock file: the pid in the first line, the state in the eighth.
func (c *Cluster) takesConnections(p *postmaster) bool {
	data, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(data), "\n")
	return len(lines) >= 8 && lines[0] == strconv.Itoa(p.pid) && strings.TrimSpace(lines[7]) == "ready"
}

// gone forgets a process that has ended.
func (c *Cluster) gone(p *postmaster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == p {
		c.running = nil
	}
}

func (c *Cluster) current() *postmaster {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// Running says whether the cluster was started and has not ended.
func (c *Cluster) Running() bool {
	p := c.current()
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// A Mode is a way to stop.
type Mode int

const (
	// Fast ends sessions, rolls back what they had open and writes a checkpoint.
	Fast Mode = iota
	// Immediate ends at once; the next start recovers.
	Immediate
)

// Stop stops the cluster and waits for that. One that is not running is stopped.
func (c *Cluster) Stop(mode Mode) error {
	p := c.current()
	if p == nil {
		return nil
	}
	signal := syscall.SIGINT
	if mode == Immediate {
		signal = syscall.SIGQUIT
	}
	_ = syscall.Kill(p.pid, signal) // fails only when it has ended
	select {
	case <-p.exited:
		c.gone(p)
		return nil
	case <-time.After(patience):
		words := c.LastWords()
		c.Kill()
		return fmt.Errorf("postgres did not stop within %v\n%s", patience, words)
	}
}

// Restart stops the cluster and starts it at the same port.
func (c *Cluster) Restart(ctx context.Context, mode Mode) error {
	if err := c.Stop(mode); err != nil {
		return err
	}
	return c.Start(ctx)
}

// Kill ends the server's first process with SIGKILL and waits for it. Its other processes notice and follow; Start waits
// for them.
func (c *Cluster) Kill() {
	p := c.current()
	if p == nil {
		return
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL) // fails only when it has ended
	<-p.exited
	c.gone(p)
}

// KillBackend ends one of the processes that serve connections with SIGKILL, chosen by pick from their number, upon which
// PostgreSQL ends all of them and recovers by itself. It reports whether there was one.
func (c *Cluster) KillBackend(pick func(n int) int) (bool, error) {
	p := c.current()
	if p == nil {
		return false, nil
	}
	pids, err := backends(p.pid)
	if err != nil || len(pids) == 0 {
		return false, err
	}
	err = syscall.Kill(pids[pick(len(pids))], syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return false, nil
	}
	return err == nil, os.NewSyscallError("kill", err)
}

// backends lists the children of a server that serve a connection over TCP: their titles name the other end.
func backends(parent int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // it has ended
		}
		// "pid (name) state parent ...", where the name may hold anything.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		title, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(title), "127.0.0.1(") && !strings.Contains(string(title), "walsender") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Address is where the cluster listens.
func (c *Cluster) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)) }

// Standby copies the cluster to a new one that follows it by streaming replication and calls itself name. from is where it
// connects to: the cluster's own Address when empty, or a proxy in front of it. The cluster must be running.
func (c *Cluster) Standby(ctx context.Context, name, from string) (*Cluster, error) {
	if from == "" {
		from = c.Address()
	}
	host, port, err := net.SplitHostPort(from)
	if err != nil {
		return nil, err
	}
	s, err := newCluster(c.config)
	if err != nil {
		return nil, err
	}
	password, _ := c.address.User.Password()
	s.Server = newServer(s.bin, s.port, password)
	err = s.tool(ctx, []string{"PGPASSWORD=" + password}, "pg_basebackup", "--pgdata="+s.data(), "--host="+host, "--port="+port,
		"--username="+superuser, "--wal-method=stream", "--checkpoint=fast", "--no-sync")
	if err == nil {
		err = s.follow(fmt.Sprintf("host=%s port=%s user=%s password=%s application_name=%s connect_timeout=5", host, port, superuser, password, name))
	}
	if err == nil {
		err = s.firstStart(ctx, password)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// follow makes a copy a standby. The copy of the primary's wish for synchronous standbys is not the standby's.
func (c *Cluster) follow(conninfo string) error {
	auto := filepath.Join(c.data(), "postgresql.auto.conf")
	text := fmt.Sprintf("primary_conninfo = '%s'\nsynchronous_standby_names = ''\nwal_retrieve_retry_interval = '200ms'\n", conninfo)
	for name, content := range map[string]string{auto: text, filepath.Join(c.data(), "standby.signal"): ""} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			return err
		}
		if c.as != nil {
			if err := os.Chown(name, int(c.as.Uid), int(c.as.Gid)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Synchronous has every commit wait for one of the standbys with these names, and waits until one of them follows
// synchronously. Without names, commits wait for none.
func (c *Cluster) Synchronous(ctx context.Context, names ...string) error {
	wish := ""
	if len(names) > 0 {
		wish = "ANY 1 (" + strings.Join(names, ", ") + ")"
	}
	if _, err := c.Query(ctx, superuser, "ALTER SYSTEM SET synchronous_standby_names = '"+wish+"'"); err != nil {
		return err
	}
	if _, err := c.Query(ctx, superuser, "SELECT pg_reload_conf()"); err != nil {
		return err
	}
	return c.until(ctx, "SELECT current_setting('synchronous_standby_names') = '"+wish+
		"' AND ('"+wish+"' = '' OR EXISTS (SELECT FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming'))")
}

// Promote makes a standby a primary and waits until it takes writes.
func (c *Cluster) Promote(ctx context.Context) error {
	if _, err := c.Query(ctx, superuser, "SELECT pg_promote(false)"); err != nil {
		return err
	}
	return c.until(ctx, "SELECT NOT pg_is_in_recovery()")
}

// until waits until a query yields true.
func (c *Cluster) until(ctx context.Context, query string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		got, err := c.Query(ctx, superuser, query)
		if got == "t" && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: still %q: %w", query, got, errors.Join(ctx.Err(), err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A Server is a PostgreSQL server, whoever runs it, by what its superuser needs to reach it.
type Server struct {
	address *url.URL // of the database postgres
	psql    string
}

func newServer(bin string, port int, password string) Server {
	return Server{psql: filepath.Join(bin, "psql"), address: &url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path: "/postgres", RawQuery: "sslmode=disable",
	}}
}

// URL is how the superuser reaches a database. It holds the password.
func (s *Server) URL(database string) string {
	u := *s.address
	u.Path = "/" + database
	return u.String()
}

// URLAt is URL by way of another address, a proxy's for example.
func (s *Server) URLAt(address, database string) string {
	u := *s.address
	u.Host, u.Path = address, "/"+database
	return u.String()
}

// Query runs statements in a database, as psql does, and returns what they yield: rows in lines, columns parted by "|".
func (s *Server) Query(ctx context.Context, database, statements string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	u := *s.address
	password, _ := u.User.Password()
	u.User, u.Path = url.User(u.User.Username()), "/"+database // arguments are anybody's to read
	cmd := exec.CommandContext(ctx, s.psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1",
		"--dbname="+u.String(), "--command="+statements)
	cmd.Env = append(clean(), "PGPASSWORD="+password, "PGCONNECT_TIMEOUT=5")
	cmd.WaitDelay = time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// CreateDatabase makes a database, a copy of template unless that is empty. Names are lower-case letters, digits and _.
func (s *Server) CreateDatabase(ctx context.Context, name, template string) error {
	if template == "" {
		template = "template0"
	}
	_, err := s.Query(ctx, "postgres", "CREATE DATABASE "+name+" TEMPLATE "+template)
	return err
}

// DropDatabase ends whoever uses a database and removes it.
func (s *Server) DropDatabase(ctx context.Context, name string) error {
	_, err := s.Query(ctx, "postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	return err
}
