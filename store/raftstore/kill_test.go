package raftstore

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	"guywire/mesh"
)

// killedKey makes the test binary the only voter of a log, which writes, makes
// a snapshot and kills itself at a step of it: folder, id and step.
const killedKey = "GUYWIRE_TEST_KILLED"

func TestMain(m *testing.M) {
	if what := os.Getenv(killedKey); what != "" {
		if err := runKilled(what); err != nil {
			fmt.Fprintln(os.Stderr, "voter:", err)
		}
		os.Exit(1) // it should be dead
	}
	os.Exit(m.Run())
}

// steps of a snapshot and of the compaction of the log after it.
var steps = []string{"create", "created", "write", "written", "close", "closed", "delete", "deleted"}

type killer string

func (k killer) at(step string) {
	if string(k) == step {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until it arrives
	}
}

type killingSnapshots struct {
	raft.SnapshotStore
	killer
}

func (s killingSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, at uint64, names raft.Transport) (raft.SnapshotSink, error) {
	s.at("create")
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, at, names)
	s.at("created")
	return killingSink{sink, s.killer}, err
}

type killingSink struct {
	raft.SnapshotSink
	killer
}

func (s killingSink) Write(b []byte) (int, error) {
	if s.killer == "write" {
		b = b[:len(b)/2]
	}
	n, err := s.SnapshotSink.Write(b)
	s.at("write")
	s.at("written")
	return n, err
}

func (s killingSink) Close() error {
	s.at("close")
	err := s.SnapshotSink.Close()
	s.at("closed")
	return err
}

type killingDisk struct {
	disk
	killer
}

func (d killingDisk) DeleteRange(first, last uint64) error {
	d.at("delete")
	err := d.disk.DeleteRange(first, last)
	d.at("deleted")
	return err
}

func runKilled(what string) error {
	fields := strings.Split(what, "|")
	dir, step := fields[0], killer(fields[2])
	id, err := mesh.ParseNodeID(fields[1])
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := Config{
		Dir: dir, ID: id, Timing: quick, Logger: slog.New(slog.DiscardHandler), Listener: listener,
		Peer:   func(net.Conn) (mesh.NodeID, bool) { return mesh.NodeID{}, false },
		Dial:   func(context.Context, mesh.NodeID) (net.Conn, error) { return nil, io.EOF },
		Admit:  func(mesh.NodeID, bool) bool { return false },
		Failed: func(err error) { fmt.Fprintln(os.Stderr, err) },
	}
	closed := make(chan struct{})
	logger := newLogger(config.Logger, closed)
	snaps, err := openSnapshots(dir, logger)
	if err != nil {
		return err
	}
	bolt, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		return err
	}
	s, err := open(config, killingSnapshots{snaps, step}, killingDisk{bolt, step}, stallAfter, logger, closed)
	if err != nil {
		return err
	}
	f := fleet{}
	for n := 1; n <= 3; {
		changed, stop := s.Watch()
		command := f.write(n)
		command.By.Node, command.SetControl.Node = id, id
		result, err := s.Propose(context.Background(), command)
		switch {
		case err == nil && result.Refused == nil:
			fmt.Println(result.Index)
			n++
		case result.Refused != nil:
			return result.Refused
		default:
			<-changed // it leads in a moment
		}
		stop()
	}
	return s.raft.Snapshot().Error()
}

// rqlite: a hard kill at one point of a snapshot lost data. Whatever the step,
// the voter comes back by itself with all that it had acknowledged.
func TestRaftKilledAtEachStep(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	f.fill(v, trailingLogs+64)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		if err := os.RemoveAll(v.config.Dir + "." + step); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(v.config.Dir+"."+step, os.DirFS(v.config.Dir)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedKey+"="+v.config.Dir+"."+step+"|"+f.first().String()+"|"+step)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acked uint64
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscan(lines.Text(), &acked); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Wait() // how it ended is read below
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL || acked == 0 {
			t.Fatalf("%s: the voter was not killed there: %s, %d acknowledged", step, cmd.ProcessState, acked)
		}
		config, _ := f.config(f.first())
		config.Dir = v.config.Dir + "." + step
		s, err := Open(config)
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		f.eventually(step+": all that was acknowledged is there", func() bool {
			control := s.State().Nodes[f.first()].Control
			return s.State().Index >= acked && len(control) == 1 && control[0].Port() == 3
		})
		f.propose([]*voter{{s, config, nil}}, f.write(4))
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
}

// fill writes n commands, many at once.
func (f *fleet) fill(v *voter, n int) {
	f.t.Helper()
	next := make(chan int)
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for i := range next {
				if _, err := v.Propose(f.t.Context(), f.write(1+i%60000)); err != nil {
					f.t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

// rqlite: snapshots that were never taken let the log grow without bound.
func TestRaftLogIsBounded(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	v := f.founded()
	size := func() int64 {
		info, err := os.Stat(filepath.Join(v.config.Dir, "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	var first int64
	for round := range 4 {
		f.fill(v, trailingLogs+snapshotThreshold)
		if err := v.raft.Snapshot().Error(); err != nil { // in time, raft does it itself
			t.Fatal(err)
		}
		begin, end, err := v.log.bounds()
		if err != nil || end-begin > trailingLogs+snapshotThreshold {
			t.Fatalf("the log holds %d to %d: %v", begin, end, err)
		}
		kept, err := os.ReadDir(filepath.Join(v.config.Dir, "snapshots"))
		if err != nil || len(kept) > snapshotsKept {
			t.Fatalf("%d snapshots are kept: %v", len(kept), err)
		}
		switch {
		case round == 1:
			first = size()
		case round > 1 && size() > 2*first:
			t.Fatalf("the file grew from %d to %d bytes", first, size())
		}
	}
}
