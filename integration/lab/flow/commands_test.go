package flow

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]Target{
		"h1=10.1.0.2:7":        {"h1", netip.MustParseAddr("10.1.0.2"), 7},
		"h1=10.1.0.2":          {"h1", netip.MustParseAddr("10.1.0.2"), 0},
		"h2=[2001:db8::2]:700": {"h2", netip.MustParseAddr("2001:db8::2"), 700},
		"h2=2001:db8::2":       {"h2", netip.MustParseAddr("2001:db8::2"), 0},
	} {
		if got, err := ParseTarget(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "h1", "=10.0.0.1", "h1=", "h1=name:7", "h1=10.0.0.1:99999"} {
		if got, err := ParseTarget(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

// process is a flow command that runs.
type process struct {
	*exec.Cmd
	out    bytes.Buffer
	stderr *bufio.Reader
}

func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only if it would never end
	t.Cleanup(cancel)
	p := &process{Cmd: exec.CommandContext(ctx, "/proc/self/exe", args...)}
	p.Env = append(os.Environ(), asCommand+"=1")
	p.Stdout = &p.out
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stderr = bufio.NewReader(stderr)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// listening returns the address that the command announces.
func (p *process) listening(t *testing.T) string {
	t.Helper()
	line, err := p.stderr.ReadString('\n')
	addr, found := strings.CutPrefix(strings.TrimSpace(line), "listening ")
	if err != nil || !found {
		t.Fatalf("announced %q, %v", line, err)
	}
	return addr
}

// finish waits for the command and decodes its report.
func (p *process) finish(t *testing.T, report any) {
	t.Helper()
	rest, _ := io.ReadAll(p.stderr)
	if err := p.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", p.Args, err, rest)
	}
	d := json.NewDecoder(&p.out)
	d.DisallowUnknownFields()
	if err := d.Decode(report); err != nil {
		t.Fatalf("%v printed %s: %v", p.Args, p.out.String(), err)
	}
}

func (p *process) terminate(t *testing.T, report any) {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.finish(t, report)
}

func TestCommandsReportOnSignalAndDuration(t *testing.T) {
	recv := startProcess(t, "udp-recv", "--listen", "127.0.0.1:0")
	udp := recv.listening(t)
	var s, stopped SendReport
	endless := startProcess(t, "udp-send", "--to", udp, "--flow", "2")
	startProcess(t, "udp-send", "--to", udp, "--pps", "500", "--size", "200", "--duration", "100ms").finish(t, &s)
	endless.terminate(t, &stopped)
	var r RecvReport
	recv.terminate(t, &r)
	for _, sent := range []SendReport{s, stopped} {
		if m, err := Merge(sent, r); err != nil || m.Lost != 0 || m.Sent == 0 {
			t.Errorf("%+v, %v", m, err)
		}
	}
	if s.Sent != 50 || s.Interval != 2*ms {
		t.Errorf("sender: %+v", s)
	}

	tcp := startProcess(t, "tcp-recv", "--listen", "127.0.0.1:0", "--streams", "2")
	var ts TCPSendReport
	startProcess(t, "tcp-send", "--to", tcp.listening(t), "--streams", "2", "--duration", "50ms").finish(t, &ts)
	var tr TCPRecvReport
	tcp.finish(t, &tr)
	if tr.Bytes == 0 || tr.Streams != 2 || ts.Connected != 2 {
		t.Errorf("sent %+v, received %+v", ts, tr)
	}

	server := startProcess(t, "echo", "--listen", "127.0.0.1:0")
	var row PingReport
	startProcess(t, "ping", "--from", "h1", "--target", "h2="+server.listening(t), "--no-icmp").finish(t, &row)
	var e EchoReport
	server.terminate(t, &e)
	if row.From != "h1" || len(row.Cells) != 1 || row.Cells[0].Name != "h2" || !row.Cells[0].Reached || e.Answered != 3 {
		t.Errorf("row %+v, echo %+v", row, e)
	}
}

func TestCommandsFailWithAReason(t *testing.T) {
	for _, args := range [][]string{
		{"udp-send"},
		{"udp-send", "--to", "nowhere"},
		{"udp-send", "--to", "127.0.0.1:9", "--size", "1"},
		{"udp-recv", "--listen", "192.0.2.1:7"},
		{"tcp-send", "--to", "127.0.0.1:9", "--from", "x"},
		{"ping", "--target", "x"},
	} {
		p := startProcess(t, args...)
		text, _ := io.ReadAll(p.stderr)
		if err := p.Wait(); err == nil || !strings.HasPrefix(string(text), "Error: ") {
			t.Errorf("%v: %v, %s", args, err, text)
		}
	}
}
