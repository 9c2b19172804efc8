#!lua
-- Moves the window of a coupon campaign: opens it, closes it, or postpones either. Coupons already issued stay issued.
--
-- KEYS 1 meta       hash    partition state
--      2 outbox     stream
--      3 record     list    idempotency record
--      4 campaign   hash    total issued withheld opens_at closes_at expires_at ...
--      5 campaigns  zset    coupon id by the end of its window (ms)
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 coupon id
--      6 first instant of the window (ms), '' to keep it  7 first instant after the window (ms), '' to keep it
--      8 how far in the past (ms) the end of the window may be; it then means now
-- Returns {'MOVED', epoch, seq, first instant of the window, first instant after it, coupons issued, coupons withheld}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or CAMPAIGN_NOT_FOUND | CLOSES_IN_PAST | INVALID_WINDOW (it is empty, or ends after the coupons expire)
-- Emits campaign_updated
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, campaign, campaigns = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now, fingerprint, ttl, request_id, coupon_id, opens_at, closes_at, grace =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local c = redis.call('HMGET', campaign, 'opens_at', 'closes_at', 'expires_at', 'issued', 'withheld')
if not c[1] then return { 'CAMPAIGN_NOT_FOUND' } end
if opens_at == '' then opens_at = c[1] end
if closes_at == '' then
  closes_at = c[2]
elseif tonumber(closes_at) < tonumber(now) then
  if tonumber(now) - tonumber(closes_at) > grace then return { 'CLOSES_IN_PAST' } end
  closes_at = now
end
if tonumber(opens_at) >= tonumber(closes_at) or tonumber(closes_at) > tonumber(c[3]) then return { 'INVALID_WINDOW' } end
local reply = { 'MOVED', epoch, seq, opens_at, closes_at, c[4], c[5] or '0' }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'campaign_updated', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'opens_at', opens_at, 'closes_at', closes_at,
  record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', campaign, 'opens_at', opens_at, 'closes_at', closes_at)
redis.call('ZADD', campaigns, closes_at, coupon_id)
return remember(record, fingerprint, ttl, reply)
