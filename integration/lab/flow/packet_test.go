package flow

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

func TestPacketGolden(t *testing.T) {
	p := Packet{Kind: EchoReply, Flow: 0x01020304, Seq: 0x0a0b, Sent: 0x0c0d0e, Interval: 2 * time.Millisecond}
	b := bytes.Repeat([]byte{0xff}, HeaderSize+1)
	p.Encode(b)
	want := []byte("gwfw\x01\x03\x00\x00\x01\x02\x03\x04\x00\x00\x00\x00" +
		"\x00\x00\x00\x00\x00\x00\x0a\x0b\x00\x00\x00\x00\x00\x0c\x0d\x0e\x00\x00\x00\x00\x00\x1e\x84\x80\xff")
	if !bytes.Equal(b, want) {
		t.Errorf("encoded\n%x, want\n%x", b, want)
	}
	if got, err := ParsePacket(b); err != nil || got != p {
		t.Errorf("parsed %+v, %v, want %+v", got, err, p)
	}
}

func FuzzParsePacket(f *testing.F) {
	var b [HeaderSize]byte
	Packet{Kind: Data, Flow: 1, Seq: 2, Sent: 3, Interval: 4}.Encode(b[:])
	f.Add(b[:])
	f.Add(append(b[:], "padding"...))
	f.Add(b[:HeaderSize-1])
	f.Add([]byte{})
	Packet{Kind: EchoReply, Flow: 1<<32 - 1, Seq: maxSeq - 1, Sent: 1<<63 - 1, Interval: maxInterval}.Encode(b[:])
	f.Add(bytes.Clone(b[:]))
	Packet{Kind: Data, Seq: maxSeq}.Encode(b[:])
	f.Add(bytes.Clone(b[:]))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := ParsePacket(in)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || p != (Packet{}) {
				t.Fatalf("error %v with %+v", err, p)
			}
			return
		}
		var again [HeaderSize]byte
		p.Encode(again[:])
		if !bytes.Equal(again[:], in[:HeaderSize]) {
			t.Fatalf("%x became %x", in[:HeaderSize], again)
		}
		a := newAccount(p, 3) // nothing a stranger sends may upset the books
		for range 2 {
			a.arrive(p, 0)
			a.arrive(Packet{Seq: maxSeq - 1, Sent: p.Interval}, p.Sent)
			a.arrive(Packet{Sent: p.Sent}, -p.Sent)
		}
		if r := a.result(time.Time{}); r.Received+r.Lost != r.LastSeq-r.FirstSeq+1 {
			t.Fatalf("the books do not balance: %+v", r)
		}
	})
}
